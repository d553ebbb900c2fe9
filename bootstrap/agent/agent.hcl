# Vault Agent keeps an API key in a file. It logs in by itself, reads a key, renews its lease for as long as the lease can be
# renewed, and then reads a new key. Run it in the directory of this file, with VAULT_ADDR set:
#
#   vault agent -config=agent.hcl
#
# README.md says what Agent does while Vault or the API is away, and what the settings are for.

vault {
  retry {
    num_retries = 120 # tries in a row of a failing read: half an hour; with the default Agent ends after six minutes
  }
}

auto_auth {
  method "approle" {
    min_backoff = "1s"
    max_backoff = "15s" # between two tries, also those of templates

    config = {
      role_id_file_path                   = "role_id"
      secret_id_file_path                 = "secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template {
  source               = "key.ctmpl"
  destination          = "key.env"
  perms                = "0600"
  error_on_missing_key = true # otherwise a misspelt field is rendered as <no value>
}

template_config {
  exit_on_retry_failure = true # a lasting refusal ends Agent; otherwise only its log shows it
}
