"""Settings: their sources, their accepted values, errors that name the key, and no secret in any message."""

from pathlib import Path
from typing import Any

import pytest

from server.settings.core import CORE
from server.settings.setting import ConfigError, Setting
from server.settings.sources import Settings, env_name

CANARY = "canary-77ab19"
TABLE = {
    "a_str": Setting("str", "none"),
    "an_int": Setting("int", 3),
    "a_float": Setting("float", 0.5),
    "a_bool": Setting("bool", False),
    "a_list": Setting("list", ("x",)),
    "a_table": Setting("table", None),
    "tables": Setting("tables", ()),
    "token": Setting("str", None, secret=True),
    "pins": Setting("list", (), secret=True),
    "number": Setting("int", None, secret=True),
    "named": Setting("str", None, env="ACME_NAMED"),
}


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gatepost.toml"
    path.write_text(text)
    return path


def made(
    tmp_path: Path | None = None, text: str | None = None, environ: dict[str, str] | None = None, **given: Any
) -> Settings:
    """Settings with the table of a plugin `acme`, unknown things refused."""
    where = file(tmp_path, text) if tmp_path is not None and text is not None else None
    settings = Settings(file=where, environ=environ or {}, given=given)
    settings.declare("acme", TABLE)
    settings.refuse_unknown()
    return settings


def refusal(tmp_path: Path | None = None, text: str | None = None, environ: dict[str, str] | None = None, **given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        made(tmp_path, text, environ, **given)
    said = str(caught.value)
    assert "\n" not in said, "one clear line"
    return said


def source(settings: Settings, key: str) -> str:
    return {name: where for name, _, where in settings.explain()}[key]


# Where a value comes from ----------------------------------------------------------------------------------------------


def test_command_line_over_environment_over_file_over_default(tmp_path: Path) -> None:
    text, environ = "port = 1001\n", {"GATEPOST_PORT": "1002"}
    assert made().get("port") == 8080
    assert source(made(), "port") == "default"
    in_file = made(tmp_path, text)
    assert in_file.get("port") == 1001
    assert source(in_file, "port").startswith("file ")
    in_environment = made(tmp_path, text, environ)
    assert in_environment.get("port") == 1002
    assert source(in_environment, "port") == "environment GATEPOST_PORT"
    on_command_line = made(tmp_path, text, environ, port=1003)
    assert on_command_line.get("port") == 1003
    assert source(on_command_line, "port") == "command line"


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert made(environ={"GATEPOST_PORT": "1002"}, port=None).get("port") == 1002


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    assert made(tmp_path, "port = 1001\n", {"GATEPOST_PORT": ""}).get("port") == 1001


def test_a_plugins_table_has_the_same_precedence(tmp_path: Path) -> None:
    text = '[acme]\nan_int = 5\na_str = "file"\n'
    settings = made(tmp_path, text, {"GATEPOST_ACME_AN_INT": "6", "ACME_NAMED": "called"})
    assert dict(settings.table("acme")) | {} == {
        "a_str": "file", "an_int": 6, "a_float": 0.5, "a_bool": False, "a_list": ["x"], "a_table": None, "tables": [], "token": None, "pins": [],
        "number": None, "named": "called",
    }  # fmt: skip
    with pytest.raises(TypeError):
        settings.table("acme")["an_int"] = 7  # type: ignore[index]


@pytest.mark.parametrize("key", [key for key, setting in CORE.items() if setting.kind != "table"])
def test_every_core_key_exists_in_file_and_environment(key: str, tmp_path: Path) -> None:
    setting = CORE[key]
    name = env_name(key, setting)
    assert name.startswith("GATEPOST_") or name in ("DATABASE_URL", "DATABASE_OWNER_URL")
    value = {
        "str": {"env": "test", "log.format": "human", "errors.format": "problem"}.get(key, "127.0.0.1" if "host" in key else "none"),
        "bool": setting.default is not True,
        "int": max(2048 if key.endswith("_bytes") else 7, int(setting.at_least or 0)),
        "float": 7.5,
        "list": ["a", "b"],
    }[setting.kind]
    text = ", ".join(value) if isinstance(value, list) else str(value)
    assert Settings(environ={name: text}).get(key) == value
    table, _, last = key.rpartition(".")
    toml = (f"[{table}]\n" if table else "") + f"{last} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
    assert Settings(file=file(tmp_path, toml), environ={}).get(key) == value


def test_a_table_is_set_in_the_file_alone(tmp_path: Path) -> None:
    text = '[openapi]\ncontact = {name = "Support"}\n[openapi.license]\nname = "MIT"\n'
    settings = Settings(file=file(tmp_path, text), environ={})
    settings.refuse_unknown()
    assert (settings.get("openapi.contact"), settings.get("openapi.license")) == ({"name": "Support"}, {"name": "MIT"})
    assert Settings(environ={"GATEPOST_OPENAPI_CONTACT": "Support"}).get("openapi.contact") is None


def test_the_file_is_named_by_flag_variable_or_its_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text("port = 1\n")
    (tmp_path / "flag.toml").write_text("port = 2\n")
    monkeypatch.chdir(tmp_path)
    assert Settings(environ={}).get("port") == 8080
    file(tmp_path, "port = 3\n")
    assert Settings(environ={}).get("port") == 3
    assert Settings(environ={"GATEPOST_CONFIG": "other.toml"}).get("port") == 1
    assert Settings(file=Path("flag.toml"), environ={"GATEPOST_CONFIG": "other.toml"}).get("port") == 2


# Kinds -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [("an_int", "5", 5), ("an_int", "-5", -5), ("a_float", "5", 5.0), ("a_float", "2.5", 2.5), ("a_bool", "true", True), ("a_bool", "TRUE", True),
     ("a_bool", "1", True), ("a_bool", "yes", True), ("a_bool", "on", True), ("a_bool", "false", False), ("a_bool", "0", False), ("a_bool", "No", False),
     ("a_bool", "off", False), ("a_list", "a", ["a"]), ("a_list", "a,b", ["a", "b"]), ("a_list", " a , b ,", ["a", "b"]), ("a_list", ",", []),
     ("a_str", " as it is ", "as it is"), ("a_str", "5", "5"), ("token", "s3", "s3")],
)  # fmt: skip
def test_texts_of_the_environment_become_what_was_declared(key: str, text: str, value: object) -> None:
    assert made(environ={f"GATEPOST_ACME_{key.upper()}": text}).table("acme")[key] == value


@pytest.mark.parametrize(
    ("key", "toml", "value"),
    [("an_int", "5", 5), ("a_float", "5", 5.0), ("a_float", "2.5", 2.5), ("a_bool", "true", True), ("a_bool", "false", False),
     ("a_list", '["a", "b"]', ["a", "b"]), ("a_list", "[]", []), ("a_list", '"a, b"', ["a", "b"]), ("a_str", '"é"', "é"),
     ("a_table", "{x = 1}", {"x": 1}), ("tables", "[{x = 1}, {y = 2}]", [{"x": 1}, {"y": 2}]), ("tables", "[]", [])],
)  # fmt: skip
def test_values_of_the_file_are_what_was_declared(key: str, toml: str, value: object, tmp_path: Path) -> None:
    assert made(tmp_path, f"[acme]\n{key} = {toml}\n").table("acme")[key] == value


def test_arrays_of_tables(tmp_path: Path) -> None:
    settings = made(tmp_path, '[[acme.tables]]\nid = "a"\n[[acme.tables]]\nid = "b"\n[acme.tables.more]\nx = 1\n')
    assert settings.table("acme")["tables"] == [{"id": "a"}, {"id": "b", "more": {"x": 1}}]


@pytest.mark.parametrize(
    ("key", "toml"),
    [("an_int", '"x"'), ("an_int", "2.5"), ("an_int", "true"), ("an_int", "[1]"), ("an_int", "{a = 1}"), ("an_int", "2024-01-01"), ("a_float", "true"),
     ("a_float", "nan"), ("a_float", "inf"), ("a_float", '"nan"'), ("a_bool", "1"), ("a_bool", '"maybe"'), ("a_bool", "2.0"), ("a_list", "5"),
     ("a_list", "[1]"), ("a_list", '["a", 1]'), ("a_list", "{a = 1}"), ("a_str", "5"), ("a_str", "true"), ("a_str", '["a"]'), ("a_table", "[]"),
     ("a_table", '"x"'), ("tables", "{}"), ("tables", "[1]"), ("tables", '"x"'), ("tables", '[{a = 1}, "x"]'), ("token", "5")],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_by_its_place(key: str, toml: str, tmp_path: Path) -> None:
    assert f"acme.{key}: must be" in refusal(tmp_path, f"[acme]\n{key} = {toml}\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [("GATEPOST_PORT", "http"), ("GATEPOST_PORT", "8080.0"), ("GATEPOST_PORT", "0x50"), ("GATEPOST_ACME_A_BOOL", "maybe"), ("GATEPOST_ACME_A_FLOAT", "nan"),
     ("GATEPOST_ACME_A_FLOAT", "-inf"), ("GATEPOST_ACME_AN_INT", "1e3"), ("GATEPOST_LIMITS_HEAD_SECONDS", "ten")],
)  # fmt: skip
def test_a_text_of_another_kind_is_refused_by_its_variable(name: str, text: str) -> None:
    assert refusal(environ={name: text}).startswith(f"{name}: must be")


def test_a_variable_for_arrays_of_tables_prevents_startup_and_names_the_file() -> None:
    said = refusal(environ={"GATEPOST_ACME_TABLES": "x"})
    assert said.startswith("GATEPOST_ACME_TABLES: not read from the environment")
    assert "[[acme.tables]]" in said
    assert "GATEPOST_CONFIG" in said


# What nobody knows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "key", "near"),
    [("prot = 1", "prot", "port"), ("[limits]\nhead_byte = 1", "limits.head_byte", "limits.head_bytes"), ("[acme]\nan_itn = 1", "acme.an_itn", "acme.an_int"),
     ("[databse]\nurl = 'x'", "databse.url", "database.url"), ("[ops]\nprot = 1", "ops.prot", "ops.port"), ("providres = ['stub']", "providres", "providers")],
)  # fmt: skip
def test_an_unknown_key_prevents_startup_and_names_the_nearest(toml: str, key: str, near: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, toml + "\n")
    assert f"unknown key '{key}'" in said
    assert said.endswith(f"the nearest known one is '{near}'")


@pytest.mark.parametrize("table", ["notes", "projects", "billing"])
def test_a_table_of_a_plugin_that_is_not_loaded_is_named_as_such(table: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, f"[{table}]\nmost_items = 1\n")
    assert said.endswith(f"unknown key '{table}.most_items': no plugin that is loaded has a table [{table}]. Is its plugin named in 'plugins'?")


@pytest.mark.parametrize(
    "toml",
    [
        "[other]\nkey = 1\n",
        "[[other]]\nkey = 1\n",
        "other = {key = 1}\n",
        "[other.deep]\nkey = 1\n",
        "[other]\n",
        "limits = 5\n",
        "database = 'x'\n",
    ],
)
def test_a_table_of_no_loaded_plugin_prevents_startup(toml: str, tmp_path: Path) -> None:
    assert "unknown key" in refusal(tmp_path, toml)


def test_an_empty_table_of_the_servers_own_is_harmless(tmp_path: Path) -> None:
    made(tmp_path, "[limits]\n[acme]\n")


@pytest.mark.parametrize(
    ("name", "near"),
    [("GATEPOST_PROT", "GATEPOST_PORT"), ("GATEPOST_DATABASE_POOLSIZE", "GATEPOST_DATABASE_POOL_SIZE"), ("GATEPOST_ACME_ANINT", "GATEPOST_ACME_AN_INT"),
     ("GATEPOST_PROVIDER", "GATEPOST_PROVIDERS"), ("GATEPOST_CONFG", "GATEPOST_CONFIG"), ("GATEPOST_PORT_", "GATEPOST_PORT")],
)  # fmt: skip
def test_an_unknown_variable_prevents_startup_and_names_the_nearest(name: str, near: str) -> None:
    said = refusal(environ={name: "1"})
    assert f"unknown variable {name}" in said
    assert said.endswith(f"the nearest known one is '{near}'")


def test_other_peoples_variables_are_no_business_of_ours() -> None:
    made(environ={"PATH": "/bin", "DATABASE": "x", "GATEPOSTAL": "1", "gatepost_port": "x", "ACME_OTHER": "1"})


@pytest.mark.parametrize(
    "name",
    ["GATEPOST_SERVICE_HOST", "GATEPOST_SERVICE_PORT", "GATEPOST_SERVICE_PORT_HTTP", "GATEPOST_PORT_8080_TCP", "GATEPOST_PORT_8080_TCP_PROTO",
     "GATEPOST_PORT_8080_TCP_PORT", "GATEPOST_PORT_8080_TCP_ADDR", "GATEPOST_PORT_53_UDP_ADDR", "GATEPOST_OPS_SERVICE_HOST", "GATEPOST_API_PORT_80_TCP"],
)  # fmt: skip
def test_service_links_are_ignored(name: str) -> None:
    made(environ={name: "tcp://10.0.0.1:8080"})


def test_the_port_of_a_service_of_another_name_is_ignored() -> None:
    made(environ={"GATEPOST_DB_PORT": "tcp://10.0.0.1:5432"})
    assert "unknown variable" in refusal(environ={"GATEPOST_DB_PORT": "5432"})


@pytest.mark.parametrize("name", ["GATEPOST_PORT", "GATEPOST_OPS_PORT"])
def test_a_service_link_in_the_place_of_the_port_is_named_as_the_cause(name: str) -> None:
    said = refusal(environ={name: "tcp://10.0.0.1:8080"})
    assert name in said
    assert "service link" in said
    assert "enableServiceLinks" in said


def test_a_plugin_without_declared_settings_gets_its_table_as_it_is(tmp_path: Path) -> None:
    settings = Settings(file=file(tmp_path, "[free]\nanything = [1, 'x']\n"), environ={"GATEPOST_FREE_MORE": "1"})
    settings.declare("free", None)
    settings.refuse_unknown()
    assert dict(settings.table("free")) == {"anything": [1, "x"]}


# Secrets ---------------------------------------------------------------------------------------------------------------


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://u:p@h/d\n")
    settings = made(environ={"DATABASE_URL_FILE": str(tmp_path / "url"), "GATEPOST_ACME_TOKEN_FILE": str(tmp_path / "url")})
    assert settings.get("database.url") == "postgresql://u:p@h/d"
    assert settings.table("acme")["token"] == "postgresql://u:p@h/d"
    assert source(settings, "database.url") == "environment DATABASE_URL_FILE"


def test_a_variable_beside_its_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(CANARY)
    environ = {"GATEPOST_ACME_TOKEN": CANARY, "GATEPOST_ACME_TOKEN_FILE": str(tmp_path / "token")}
    assert refusal(environ=environ) == "GATEPOST_ACME_TOKEN and GATEPOST_ACME_TOKEN_FILE are both set: unset one of them"
    assert made(environ=environ | {"GATEPOST_ACME_TOKEN": " \n"}).table("acme")["token"] == CANARY
    assert made(environ=environ | {"GATEPOST_ACME_TOKEN_FILE": ""}).table("acme")["token"] == CANARY


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_secrets_file_that_cannot_be_read_prevents_startup(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / CANARY).write_bytes(content)
    said = refusal(environ={"GATEPOST_ACME_TOKEN_FILE": str(tmp_path / CANARY)})
    assert said.startswith("GATEPOST_ACME_TOKEN_FILE: ")


def secretive(tmp_path: Path) -> Settings:
    (tmp_path / "pin").write_text(CANARY)
    text = f'[database]\nowner_url = "postgresql://o:{CANARY}@h/d"\n[acme]\npins = ["{CANARY}", "b"]\n[[acme.tables]]\nhash = "{CANARY}"\n'
    environ = {
        "DATABASE_URL": f"postgresql://user:{CANARY}@host/db",
        "GATEPOST_ACME_TOKEN_FILE": str(tmp_path / "pin"),
        "GATEPOST_CORS_ORIGINS": f"https://user:{CANARY}@example.com",
        "GATEPOST_ACME_A_STR": f"https://user:{CANARY}@example.com/x",
    }
    return made(tmp_path, text, environ)


def test_no_secret_is_ever_shown(tmp_path: Path) -> None:
    settings = secretive(tmp_path)
    rows = settings.explain()
    assert CANARY not in str(rows)
    assert CANARY not in repr(settings)
    assert CANARY not in str(settings)
    shown = {key: value for key, value, _ in rows}
    assert shown["database.url"] == shown["acme.token"] == shown["acme.pins"] == "(set, not shown)"
    assert shown["database.direct_url"] == "(none)", "that there is none is no secret"
    assert shown["acme.tables"] == "{hash}"
    assert settings.table("acme")["token"] == CANARY, "else the test proves nothing"


def test_the_values_that_are_kept_do_not_show_themselves(tmp_path: Path) -> None:
    assert CANARY not in repr(vars(secretive(tmp_path))["_values"])


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("[acme]\nnumber = '%s'\n", {}),
        ("[acme]\nnumber = ['%s']\n", {}),
        ("[acme]\ntoken = ['%s']\n", {}),
        ("[acme]\npins = [1, '%s']\n", {}),
        ("[acme]\npins = {x = '%s'}\n", {}),
        ("[acme]\ntoken = '%s\n", {}),
        ("[acme]\ntoken = '%s' '\n", {}),
        ("[acme]\ntoken = %s\n", {}),
        ("[acme]\ntoken = '%s'\ntoken = '%s'\n", {}),
        ("[acme]\nunknown = '%s'\n", {}),
        ("[clerk]\nsecret_key = '%s'\n", {}),
        ("", {"GATEPOST_ACME_NUMBER": "%s"}),
        ("", {"GATEPOST_ACME_TOKNE": "%s"}),
        ("", {"GATEPOST_SECRET_KEY": "%s"}),
        ("[database]\nurl = ['%s']\n", {}),
    ],
)
def test_no_error_repeats_a_secret(text: str, environ: dict[str, str], tmp_path: Path) -> None:
    said = refusal(tmp_path, text.replace("%s", CANARY), {name: value.replace("%s", CANARY) for name, value in environ.items()})
    assert CANARY not in said


def test_a_secret_number_in_a_file_of_its_own_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text(CANARY)
    assert CANARY not in refusal(environ={"GATEPOST_ACME_NUMBER_FILE": str(tmp_path / "pin")})


# Rules -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "about"),
    [
        ({"env": "staging"}, "env"),
        ({"env": "Production"}, "env"),
        ({"env": "production"}, "DATABASE_URL"),
        ({"host": "0.0.0.0"}, "host"),
        ({"host": "::"}, "host"),
        ({"env": "test", "host": "0.0.0.0"}, "host"),
        ({"providers": []}, "providers"),
        ({"providers": ["stub", "stub"]}, "providers"),
        ({"plugins": ["a", "a"]}, "plugins"),
        ({"handlers": ["me", "me"]}, "handlers"),
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"ops.port": 70000}, "ops.port"),
        ({"workers": 0}, "workers"),
        ({"workers": 257}, "workers"),
        ({"database.pool_size": 0}, "database.pool_size"),
        ({"database.pooler": "session"}, "database.pooler"),
        ({"limits.body_bytes": 0}, "limits.body_bytes"),
        ({"limits.head_bytes": 0}, "limits.head_bytes"),
        ({"limits.head_bytes": -1}, "limits.head_bytes"),
        ({"limits.head_seconds": 0}, "limits.head_seconds"),
        ({"limits.provider_seconds": -1}, "limits.provider_seconds"),
        ({"database.acquire_seconds": 0.0}, "database.acquire_seconds"),
        ({"revocation.max_staleness": 0}, "revocation.max_staleness: must be at least 0.5, not 0.0"),
        ({"revocation.max_staleness": -1}, "revocation.max_staleness: must be at least 0.5, not -1.0"),
        ({"log.format": "xml"}, "log.format: must be one of auto, json, human, not xml"),
        ({"audit.retention_days": 6}, "audit.retention_days"),
        ({"idempotency.keep_seconds": 0.5}, "idempotency.keep_seconds: must be 1 to 31622400, not 0.5"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(given: dict[str, Any], about: str) -> None:
    said = refusal(**given)
    assert about in said.partition(" ")[0] + said


def test_a_refused_value_names_its_key_and_its_source(tmp_path: Path) -> None:
    assert refusal(environ={"GATEPOST_OPS_PORT": "70000"}) == "ops.port: must be 0 to 65535, not 70000 (environment GATEPOST_OPS_PORT)"
    assert refusal(tmp_path, "workers = 0\n") == f"workers: must be 1 to 256, not 0 (file {tmp_path}/gatepost.toml)"


BOUNDED = {
    "ratio": (Setting("float", 0.5, more_than=0, at_most=1), "0", "more than 0 and at most 1"),
    "tries": (Setting("int", 3, at_least=1), "0", "at least 1"),
    "mode": (Setting("str", "fast", choices=("fast", "safe")), "slow", "one of fast, safe"),
    "kinds": (Setting("list", ("a",), choices=("a", "b")), "a,c", "one of a, b"),
    "pin": (Setting("int", secret=True, at_least=1000), "77", "at least 1000"),
}


@pytest.mark.parametrize("key", BOUNDED)
def test_a_plugin_s_setting_has_bounds_and_choices_too(key: str) -> None:
    setting, bad, allowed = BOUNDED[key]
    settings = Settings(environ={f"GATEPOST_ACME_{key.upper()}": bad}, given={})
    with pytest.raises(ConfigError) as caught:
        settings.declare("acme", {key: setting})
    assert str(caught.value).startswith(f"acme.{key}: must be {allowed}")
    assert (", not " in str(caught.value)) is not setting.secret
    fine = Settings(environ={}, given={})
    fine.declare("acme", {key: setting})
    assert fine.table("acme")[key] == (list(setting.default) if setting.kind == "list" else setting.default)


@pytest.mark.parametrize(
    "declared", [{"kind": "number"}, {"kind": "str", "at_least": 1}, {"kind": "bool", "at_most": 1}, {"kind": "int", "choices": ("1",)}]
)
def test_a_setting_that_cannot_be_checked_cannot_be_declared(declared: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="setting"):
        Setting(**declared)


@pytest.mark.parametrize("text", ["3\n", " 3", "3\r\n", "\t3 "])
def test_blanks_and_line_ends_around_a_variable_are_removed(text: str) -> None:
    assert Settings(environ={"GATEPOST_WORKERS": text}).get("workers") == 3
    assert Settings(environ={"GATEPOST_WORKERS": "\n"}).get("workers") == 1, "nothing is left of it"


@pytest.mark.parametrize("text", ["'s3cret'", '"s3cret"', '"s3cret"\n'])
def test_quotes_around_a_variable_are_named_and_its_value_is_not(text: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL: its value is in quotes") as caught:
        Settings(environ={"DATABASE_URL": text}, given={}).get("database.url")
    assert "s3cret" not in str(caught.value)


def test_production_with_a_database_may_serve_anybody() -> None:
    settings = made(environ={"GATEPOST_ENV": "production", "DATABASE_URL": "postgresql://h/d", "GATEPOST_HOST": "0.0.0.0"})
    assert settings.get("host") == "0.0.0.0"


@pytest.mark.parametrize("toml", ["port = ", "port = 1\nport = 2\n", "= 1", "[acme\n", "port = 08080\n", "\x00"])
def test_bad_toml_is_one_line_with_the_place(toml: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, toml)
    assert "gatepost.toml: not valid TOML" in said


def test_a_file_that_is_not_text_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "x.toml", tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError, match=path.name):
            Settings(file=path, environ={})
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        Settings(environ={"GATEPOST_CONFIG": str(tmp_path / "absent.toml")})


def test_a_required_setting_of_a_plugin_that_has_no_value_prevents_startup() -> None:
    settings = Settings(environ={"GATEPOST_ACME_NAME": "x"}, given={})
    settings.declare("acme", {"name": Setting(required=True)})
    with pytest.raises(ConfigError, match=r"plugin 'acme': the setting 'acme.url' \(GATEPOST_ACME_URL\) is missing"):
        settings.declare("acme", {"url": Setting(required=True)})


@pytest.mark.parametrize("password", [CANARY, f"p@{CANARY}", f"p/{CANARY}", f"p@{CANARY}@/{CANARY}", f"p:{CANARY}?"])
def test_a_password_in_a_setting_that_is_no_secret_is_not_shown(password: str) -> None:
    """Nor its end, where it is not percent-encoded."""
    settings = made(**{"acme.a_str": f"amqp://me:{password}@queue:5672/x"})
    assert {name: value for name, value, _ in settings.explain()}["acme.a_str"] == "amqp://me:***@queue:5672/x"
