# Vault Agent that keeps an API key in a file. It logs in by itself, reads a key, renews its lease for as long as that can
# be renewed, and then reads a new one. Run it in the directory of this file, with VAULT_ADDR set:
#
#   vault agent -config=agent.hcl

auto_auth {
  method "approle" {
    config = {
      role_id_file_path                   = "role_id"
      secret_id_file_path                 = "secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template {
  source      = "key.ctmpl"
  destination = "key.env"
  perms       = "0600"
}

template_config {
  exit_on_retry_failure = true # a refusal ends the agent instead of hiding in its log
}
