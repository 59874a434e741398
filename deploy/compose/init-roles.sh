#!/bin/sh
# Run once by Postgres's image, on a new volume: the two roles and the database. The server never uses the superuser.
#   gatepost_owner  owns the database and migrates it; CREATEROLE, since schema.sql makes roles that no one can log in as
#   gatepost_app    serves; owns nothing, and schema.sql gives it what it needs
set -eu
secrets=${SECRETS_FOLDER:-/run/secrets}
# The passwords come in as psql's variables, so that none is on a command line.
owner_password=$(cat "$secrets/owner_password") app_password=$(cat "$secrets/app_password")
export owner_password app_password
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\getenv owner_password owner_password
\getenv app_password app_password
CREATE ROLE gatepost_owner LOGIN CREATEROLE PASSWORD :'owner_password';
CREATE ROLE gatepost_app LOGIN PASSWORD :'app_password';
CREATE DATABASE gatepost OWNER gatepost_owner;
SQL
