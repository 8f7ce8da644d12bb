#!/bin/sh
# Makes the secrets that compose.yaml mounts, once; existing ones are kept.
#
#   deploy/make-secrets.sh [FOLDER]      default: deploy/secrets
#
# Provider keys are taken from OPENAI_API_KEY and ANTHROPIC_API_KEY when they are set; otherwise their
# files are empty, and Janus answers with its rehearsal model. Write a key into its file at any time
# and restart the service `inference`.
set -eu
folder=${1:-"$(dirname "$0")/secrets"}

# Only the owner looks into the folder. The files in it can be read by anybody who got so far: containers
# do, as users of their own.
umask 077
mkdir -p "$folder"

random() { od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'; }

keep() { # name, content: write it unless it is there
    [ -e "$folder/$1" ] || printf '%s' "$2" >"$folder/$1"
    chmod 444 "$folder/$1"
}

keep postgres_admin_password "$(random)"
keep postgres_service_password "$(random)"
keep redis_password "$(random)"
admin=$(cat "$folder/postgres_admin_password")
service=$(cat "$folder/postgres_service_password")
redis=$(cat "$folder/redis_password")
keep janus_postgres_admin_url "postgresql://postgres:$admin@postgres:5432/janus"
keep janus_postgres_url "postgresql://janus_service:$service@postgres:5432/janus"
keep janus_redis_url "redis://:$redis@redis:6379/0"
keep redis_auth.conf "requirepass $redis"
keep openai_api_key "${OPENAI_API_KEY:-}"
keep anthropic_api_key "${ANTHROPIC_API_KEY:-}"
echo "secrets are in $folder"
