"""Postgres URLs as providers, other clients and people write them."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from server.database.urls import UrlMistake, complaint, trusts_system_roots, usable

PLAIN = "postgresql://app:s3cret@db.example.com:5432/shop"
NEON = "postgresql://app:s3cret@ep-x-123456.eu-central-1.aws.neon.tech/shop"
POOLED = "postgresql://app:s3cret@ep-x-123456-pooler.eu-central-1.aws.neon.tech/shop"
SUPABASE = "postgresql://postgres.abcdefghijkl:s3cret@aws-0-eu-central-1.pooler.supabase.com"

# The URL that each provider's own documentation shows, and what of it is used; None: all of it.
PROVIDERS = [
    (f"{NEON}?sslmode=require", None),
    (f"{NEON}?sslmode=require&channel_binding=require", f"{NEON}?sslmode=require"),
    (f"{POOLED}?sslmode=require&channel_binding=require", f"{POOLED}?sslmode=require"),
    (f"{POOLED}?sslmode=require&pgbouncer=true&connect_timeout=15&pool_timeout=15", f"{POOLED}?sslmode=require"),
    (f"{NEON}?sslmode=require&options=endpoint%3Dep-x-123456", None),
    (f"{NEON}?sslmode=verify-full&sslrootcert=system", None),
    (f"{NEON}?sslmode=require&sslnegotiation=direct", None),
    ("postgresql://postgres:s3cret@db.abcdefghijkl.supabase.co:5432/postgres", None),
    (f"{SUPABASE}:5432/postgres", None),
    (f"{SUPABASE}:6543/postgres?pgbouncer=true", f"{SUPABASE}:6543/postgres"),
    (f"{SUPABASE}:6543/postgres?pgbouncer=true&connection_limit=1", f"{SUPABASE}:6543/postgres"),
    (f"{SUPABASE}:6543/postgres?workaround=supabase-pooler.vercel", f"{SUPABASE}:6543/postgres"),
    (f"{SUPABASE}:6543/postgres?sslmode=require&supa=base-pooler.x", f"{SUPABASE}:6543/postgres?sslmode=require"),
    ("postgresql://app:s3cret@shop.abc123.eu-central-1.rds.amazonaws.com:5432/shop?sslmode=verify-full&sslrootcert=/etc/passwd", None),
    ("postgres://app:s3cret@shop.cluster-abc123.eu-central-1.rds.amazonaws.com:5432/shop?sslmode=require", None),
    ("postgresql://app:shop.abc.rds.amazonaws.com%3A5432%2F%3FAction%3Dconnect%26X-Amz-Signature%3Ds3cret@shop.abc.rds.amazonaws.com:5432/shop?sslmode=require", None),
    ("postgresql://app:s3cret@/shop?host=/cloudsql/project:region:name", None),
    ("postgresql://app:s3cret@localhost/shop?host=/cloudsql/project:region:name", None),
    ("postgresql://app%40server:s3cret@server.postgres.database.azure.com:5432/shop?sslmode=require", None),
    ("postgresql://app:s3cret@shop.postgres.database.azure.com:5432/shop?sslmode=require", None),
    ("postgresql://server.postgres.database.azure.com:5432/shop?user=app@server&password=s3cret&sslmode=require", None),
    ("postgres://app:s3cret@shop-db.flycast:5432/shop?sslmode=disable", None),
    ("postgres://app:s3cret@[fdaa::3]:5432/shop?sslmode=disable", None),
    ("postgresql://postgres:s3cret@postgres.railway.internal:5432/railway", None),
    ("postgresql://postgres:s3cret@monorail.proxy.rlwy.net:12345/railway", None),
    ("postgres://u1234:ps3cret@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1234", None),
    ("postgresql://app:s3cret@dpg-abc123-a.frankfurt-postgres.render.com/shop", None),
    ("postgresql://doadmin:s3cret@db-postgresql-fra1-1-do-user-1-0.b.db.ondigitalocean.com:25060/defaultdb?sslmode=require", None),
    ("postgres://application:s3cret@p.abcdef.db.postgresbridge.com:5432/postgres", None),
    ("postgres://tsdbadmin:s3cret@abc.def.tsdb.cloud.timescale.com:31234/tsdb?sslmode=require", None),
    ("postgres://avnadmin:s3cret@pg-1-x.aivencloud.com:12691/defaultdb?sslmode=require", None),
    (f"{PLAIN}?schema=public&connection_limit=5&pool_timeout=2&socket_timeout=3&statement_cache_size=0", PLAIN),
    (f"{PLAIN}?max_idle_connection_lifetime=30&single_use_connections=true&sslaccept=strict", PLAIN),
    (f"{PLAIN}?uselibpqcompat=true&sslmode=require", f"{PLAIN}?sslmode=require"),
    # libpq's own
    (f"{PLAIN}?connect_timeout=10&keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5&tcp_user_timeout=0", PLAIN),
    (f"{PLAIN}?gssencmode=disable&client_encoding=UTF8&load_balance_hosts=disable&sslcertmode=allow&sslsni=1", PLAIN),
    (f"{PLAIN}?application_name=shop&options=-c%20search_path%3Dpublic", None),
    ("postgresql://app:s3cret@one:5432,two:5433/shop?target_session_attrs=read-write", None),
    ("postgresql://app:s3cret@%2Fvar%2Frun%2Fpostgresql:5433/shop", None),
    ("postgresql://app:a%40b%23c%25@localhost/shop", None),
    ("postgresql://app@localhost/shop", None),
    ("POSTGRESQL://app:s3cret@localhost/shop", None),
    (f"{PLAIN}?", None),
    (f"{PLAIN}?&sslmode=require&", f"{PLAIN}?sslmode=require"),
    ("host=localhost dbname=shop", None),
]


@pytest.mark.parametrize(("written", "used"), PROVIDERS)
def test_what_providers_write_is_taken(written: str, used: str | None) -> None:
    assert usable(written) == (used or written)


@pytest.mark.parametrize(("written", "options"), [
    # a word for a provider's proxy, which demands TLS: Postgres itself would refuse it
    ("options=endpoint%3Dep-x", None), ("options=endpoint%3Dep-x&sslmode=prefer", None), ("options=reference%3Dabc", None),
    ("options=endpoint%3Dep-x&sslmode=require", "endpoint=ep-x"), ("options=endpoint%3Dep-x%20-c%20search_path%3Dpublic", "-c search_path=public"),
    ("options=-c+search_path%3Dpublic", "-c search_path=public"), ("options=-csearch_path%3Dpublic", "-csearch_path=public"),
])  # fmt: skip
def test_options_reach_who_understands_them(written: str, options: str | None) -> None:
    assert parse_qs(urlsplit(usable(f"{PLAIN}?{written}")).query).get("options", [None]) == [options]


def test_a_plus_in_a_password_stays_one() -> None:
    used = usable("postgresql://db.example.com/shop?user=app&password=a+b&connect_timeout=1")
    assert unquote(urlsplit(used).query.partition("password=")[2]) == "a+b"
    assert parse_qs(urlsplit(used).query)["password"] == ["a+b"]


def test_the_systems_roots() -> None:
    assert trusts_system_roots(f"{PLAIN}?sslmode=verify-full&sslrootcert=system")
    assert trusts_system_roots(f"{PLAIN}?sslrootcert=system")
    assert not trusts_system_roots(f"{PLAIN}?sslrootcert=/etc/system")
    assert not trusts_system_roots(f"{PLAIN}?xsslrootcert=system")


@pytest.mark.parametrize(("written", "said"), [
    ("postgresql://app:[YOUR-PASSWORD]@db.example.com/shop", "placeholder"),
    ("postgresql://postgres.ref:[YOUR-PASSWORD]@aws-0.pooler.supabase.com:6543/postgres", "placeholder"),
    ("postgresql://app:<password>@db.example.com/shop", "placeholder"),
    ("postgresql://app:{your_password}@server.postgres.database.azure.com/shop", "placeholder"),
    ("postgresql://app:${PGPASSWORD}@db.example.com/shop", "placeholder"),
    ("postgresql://app:$PGPASSWORD@db.example.com/shop", "placeholder"),
    ("postgresql://app:****************@ep-x.neon.tech/shop", "placeholder"),
    ("postgresql://app:YOUR_PASSWORD@db.example.com/shop", "placeholder"),
    ("postgresql+asyncpg://app:s3cret@db.example.com/shop", "postgresql+asyncpg://"),
    ("postgresql+psycopg://app:s3cret@db.example.com/shop", "postgresql+psycopg://"),
    ("postgres+psycopg2://app:s3cret@db.example.com/shop", "postgres+psycopg2://"),
    ("postgresql://app:s3c@ret@db.example.com/shop", "%40"),
    ("postgres://app@server:s3cret@server.postgres.database.azure.com:5432/shop", "%40"),
    ("postgresql://app:s3c#ret@db.example.com/shop", "%23"),
    ("postgresql://app:s3c%ret@db.example.com/shop", "%25"),
    ("postgresql://app:s3c/ret@db.example.com/shop", "%2F"),
    ("postgresql://app:s3c?ret=1@db.example.com/shop", "%3F"),
    (f"{PLAIN}?schema=sales", "schema"),
    (f"{PLAIN}?sslmod=require", "'sslmod'; the nearest known one is 'sslmode'"),
    (f"{PLAIN}?SSLMODE=require", "'SSLMODE'; the nearest known one is 'sslmode'"),
    (f"{PLAIN}?ssl=true", "write sslmode=require"),
    (f"{PLAIN}?currentSchema=public", "'currentSchema'"),
    (f"{PLAIN}?sslmode=no-verify", "sslmode must be one of disable, allow"),
    (f"{PLAIN}?sslmode=", "sslmode must be one of"),
    (f"{PLAIN}?sslmode", "'sslmode' has no value"),
    (f"{PLAIN}?target_session_attrs=master", "target_session_attrs must be one of any"),
    (f"{PLAIN}?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
    (f"{PLAIN}?sslnegotiation=direct", "needs sslmode=require"),
    (f"{PLAIN}?sslrootcert=/nowhere/ca.pem", "sslrootcert: /nowhere/ca.pem: No such file"),
    (f"{PLAIN}?gssencmode=require", "gssencmode is not supported"),
    (f"{PLAIN}?require_auth=scram-sha-256", "unknown parameter 'require_auth'"),
    (f"{PLAIN}?s3cret%20!=x", "unknown parameter"),
    ("postgresql://app:s3cret@db.example.com:99999/shop", "the port must be a number"),
    ("postgresql://app:s3cret@db.example.com:0/shop", "the port must be a number"),
    ("postgresql://app:s3cret@db.example.com:${PORT}/shop", "the port must be a number"),
    ("postgresql://app:s3cret@::1:5432/shop", "needs brackets"),
    ("postgresql://app:s3cret@[::1:5432/shop", "the brackets of an IPv6 address"),
    ("postgresql://app:s3c[ret@db.example.com/shop", "a bracket in the password must be percent-encoded"),
    ("postgresql://app:s3c]ret@db.example.com/shop", "a bracket in the password must be percent-encoded"),
    ("postgresql:/app:s3cret@db.example.com/shop", "two slashes"),
    (f"{PLAIN}/", "the name of the database has a / in it"),
    (f"{PLAIN}/public?sslmode=require", "the name of the database has a / in it"),
    ("postgresql://app:s3c%00ret@db.example.com/shop", "has a NUL character"),
    ("postgresql://app:s3cret@db.example.com :5432/shop", "blank"),
    (f"postgresql://app:s3cret@{'a' * 64}.example.com/shop", "too long"),
])  # fmt: skip
def test_a_mistake_is_named_without_a_secret(written: str, said: str) -> None:
    with pytest.raises(UrlMistake) as caught:
        usable(written)
    assert said in str(caught.value)
    assert "s3c" not in str(caught.value)


@pytest.mark.parametrize(("written", "said"), [
    ("jdbc:postgresql://db.example.com/shop?user=app&password=s3cret", "not jdbc:postgresql://"),
    ("psql 'postgresql://app:s3cret@db.example.com/shop'", "give the URL alone"),
    ("postgresql:app:s3cret@db.example.com/shop", "give the URL alone"),
    ("host=localhost dbname=shop password=s3cret", "not libpq's keywords"),
    ("app:s3cret@db.example.com/shop", "it must begin with postgresql://"),
    ("mysql://app:s3cret@db.example.com/shop", "not mysql://"),
    ("https://app:s3cret@db.example.com/shop", "not https://"),
    ("prisma+postgres://accelerate.prisma-data.net/?api_key=s3cret", "the address of a proxy"),
])  # fmt: skip
def test_what_is_no_postgres_url_is_named(written: str, said: str) -> None:
    assert said in complaint(written)
    assert "s3cret" not in complaint(written)
