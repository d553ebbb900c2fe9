# Vault Agent keeps a key of Posit Connect in connect.env. Run it in the directory of role_id and secret_id, with VAULT_ADDR
# set.

vault {
  retry {
    num_retries = 120 # as in ../agent/agent.hcl; ../agent/README.md says why
  }
}

auto_auth {
  method "approle" {
    min_backoff = "1s"
    max_backoff = "15s"

    config = {
      role_id_file_path                   = "role_id"
      secret_id_file_path                 = "secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template {
  contents    = <<EOT
{{- with secret "oidcexchange/creds/reporting" -}}
CONNECT_SERVER=https://connect.example.com
CONNECT_API_KEY={{ .Data.api_key }}
{{ end -}}
EOT
  destination = "connect.env"
  perms       = "0600"

  error_on_missing_key = true
}

template_config {
  exit_on_retry_failure = true # a lasting refusal ends Agent; otherwise only its log shows it
}
