"""Postgres URLs as providers write them."""

from __future__ import annotations

import pytest

from server.database.urls import UrlMistake, usable

PLAIN = "postgresql://app:s3cret@db.example.com:5432/shop"


@pytest.mark.parametrize(("written", "used"), [
    # Neon; with the endpoint for clients without SNI
    ("postgresql://app:s3cret@ep-x.eu.aws.neon.tech/shop?sslmode=require&channel_binding=require", "postgresql://app:s3cret@ep-x.eu.aws.neon.tech/shop?sslmode=require"),
    (f"{PLAIN}?sslmode=require&options=endpoint%3Dep-x", f"{PLAIN}?sslmode=require&options=endpoint%3Dep-x"),
    # Supabase, direct and through its pooler; Prisma's words
    ("postgresql://postgres.ref:s3cret@aws-0.pooler.supabase.com:6543/postgres?pgbouncer=true", "postgresql://postgres.ref:s3cret@aws-0.pooler.supabase.com:6543/postgres"),
    (f"{PLAIN}?schema=public&connection_limit=1&pool_timeout=0", PLAIN),
    # libpq's: Heroku, RDS, Cloud SQL, Azure, Fly, Railway
    (f"{PLAIN}?connect_timeout=10&keepalives=1&keepalives_idle=30", PLAIN),
    (f"{PLAIN}?sslmode=verify-full&sslrootcert=%2Fetc%2Fpasswd", f"{PLAIN}?sslmode=verify-full&sslrootcert=%2Fetc%2Fpasswd"),
    ("postgresql://app:s3cret@/shop?host=/cloudsql/project:region:name", "postgresql://app:s3cret@/shop?host=/cloudsql/project:region:name"),
    ("postgresql://app%40server:s3cret@server.postgres.database.azure.com:5432/shop", "postgresql://app%40server:s3cret@server.postgres.database.azure.com:5432/shop"),
    ("postgres://app:s3cret@[fdaa::3]:5432/shop?sslmode=disable", "postgres://app:s3cret@[fdaa::3]:5432/shop?sslmode=disable"),
    ("postgresql://app:s3cret@one:5432,two:5433/shop?target_session_attrs=read-write", "postgresql://app:s3cret@one:5432,two:5433/shop?target_session_attrs=read-write"),
    ("postgresql://app:a%40b%23c%25@localhost/shop", "postgresql://app:a%40b%23c%25@localhost/shop"),
    ("host=localhost dbname=shop", "host=localhost dbname=shop"),
])  # fmt: skip
def test_what_providers_write_is_taken(written: str, used: str) -> None:
    assert usable(written) == used


@pytest.mark.parametrize(("written", "said"), [
    ("postgresql://app:[YOUR-PASSWORD]@db.example.com/shop", "placeholder"),
    ("postgresql+asyncpg://app:s3cret@db.example.com/shop", "postgresql+asyncpg://"),
    ("postgresql://app:s3c@ret@db.example.com/shop", "%40"),
    ("postgresql://app:s3c#ret@db.example.com/shop", "%23"),
    ("postgresql://app:s3c%ret@db.example.com/shop", "%25"),
    ("postgresql://app:s3c/ret@db.example.com/shop", "%2F"),
    ("postgresql://app:s3c?ret=1@db.example.com/shop", "%3F"),
    (f"{PLAIN}?schema=sales", "schema"),
    (f"{PLAIN}?sslmod=require", "'sslmod'"),
    (f"{PLAIN}?s3cret%20!=x", "unknown parameter"),
])  # fmt: skip
def test_a_mistake_is_named_without_a_secret(written: str, said: str) -> None:
    with pytest.raises(UrlMistake) as caught:
        usable(written)
    assert said in str(caught.value)
    assert "s3c" not in str(caught.value)
