terraform {
  required_version = ">= 1.10"
  required_providers {
    vault = { source = "hashicorp/vault" }
  }
}

resource "vault_generic_endpoint" "issuer" {
  path                 = "oidcexchange/issuers/github"
  data_json            = file("${path.module}/issuer.json")
  ignore_absent_fields = true
}

resource "vault_generic_endpoint" "trust" {
  path                 = "oidcexchange/trust/widget-main"
  data_json            = file("${path.module}/trust.json")
  ignore_absent_fields = true
  depends_on           = [vault_generic_endpoint.issuer]
}

resource "vault_generic_endpoint" "role" {
  path                 = "oidcexchange/roles/widget-deploy"
  data_json            = file("${path.module}/role.json")
  ignore_absent_fields = true
  depends_on           = [vault_generic_endpoint.trust]
}

# A key for this run, read with the run's own Vault login. No state and no plan contains it.
ephemeral "vault_generic_endpoint" "key" {
  path         = "oidcexchange/creds/terraform"
  data_json    = jsonencode({})
  write_fields = ["api_key"]
}

# provider "acme" { token = ephemeral.vault_generic_endpoint.key.write_data["api_key"] }
