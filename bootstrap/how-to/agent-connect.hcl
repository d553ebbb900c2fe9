# Vault Agent that keeps a key of Posit Connect in connect.env. Run it in the directory of role_id and secret_id, with
# VAULT_ADDR set.

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
  contents    = <<EOT
{{- with secret "oidcexchange/creds/connect-report" -}}
CONNECT_SERVER=https://connect.example.com
CONNECT_API_KEY={{ .Data.api_key }}
{{ end -}}
EOT
  destination = "connect.env"
  perms       = "0600"
}

template_config {
  exit_on_retry_failure = true # a refusal ends the agent instead of hiding in its log
}
