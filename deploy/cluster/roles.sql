-- Run once by Patroni (bootstrap.post_init). Contains passwords: mode 0600. The server never uses the superuser.
--   gatepost_owner  owns the database and migrates it; CREATEROLE, since schema.sql makes roles that no one can log in as
--   gatepost_app    serves; owns nothing, and schema.sql gives it what it needs
CREATE ROLE gatepost_owner LOGIN CREATEROLE PASSWORD '${OWNER_PASSWORD}';
CREATE ROLE gatepost_app LOGIN PASSWORD '${APP_PASSWORD}';
-- Behind PgBouncer in transaction mode the time-outs belong to the role (`check` warns without them).
ALTER ROLE gatepost_app SET statement_timeout = '5s';
ALTER ROLE gatepost_app SET timezone = 'UTC';
CREATE DATABASE gatepost OWNER gatepost_owner;
