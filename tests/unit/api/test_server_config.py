"""The server's configuration file."""

from dataclasses import fields
from pathlib import Path

import pytest

from scheduler.api.tls import ConfigurationError, Tls
from scheduler.config import Config, config_from, load_config, split_address
from scheduler.governance.limits import Limits
from scheduler.identity.issuers import Issuer


def test_only_the_state_folder_is_needed(tmp_path: Path) -> None:
    config = config_from({"state_dir": "state"}, tmp_path)
    assert config.listen == "127.0.0.1:50051"
    assert config.state_dir == tmp_path / "state"
    assert config.artifacts == str(tmp_path / "state" / "artifacts")
    assert (config.algorithms_dir / "manifest.schema.json").is_file()


def test_every_key_is_read(tmp_path: Path) -> None:
    document = {
        "state_dir": "/var/lib/suanli",
        "listen": "0.0.0.0:1",
        "agents_listen": "0.0.0.0:2",
        "metrics_listen": "",
        "database_url": "postgresql://h/d",
        "tls": {
            "cert": "c.pem",
            "key": "k.pem",
            "client_ca": "ca.pem",
            "agent_ca_cert": "agents.pem",
            "agent_ca_key": "agents.key",
            "agents_need_certificates": True,
        },
        "artifacts_url": "s3://bucket/a",
        "algorithms_dir": "algos",
        "heartbeat_interval_ms": 100,
        "lease_ttl_ms": 300,
        "max_blob_bytes": 5,
        "shutdown_grace_ms": 0,
        "bootstrap_admin_key_file": "admin.key",
        "ready_file": "ready.json",
        "verify_ledger_hours": 12,
        "limits": {"user_streams": 7},
        "collect_artifacts_hours": 0,
        "artifacts_grace_hours": 2,
        "results_retention_days": 180,
        "uploads_retention_days": 30,
        "audit_key_file": "audit.pem",
        "log_level": "debug",
        "oidc": {"issuers": []},
    }
    assert set(document) == {f.name for f in fields(Config)}
    config = config_from(document, tmp_path)
    assert config.limits == Limits(user_streams=7)
    assert set(document["tls"]) == {f.name for f in fields(Tls)}
    names = ("c.pem", "k.pem", "ca.pem", "agents.pem", "agents.key")
    assert config.tls == Tls(*(tmp_path / name for name in names), agents_need_certificates=True)
    assert config.artifacts == "s3://bucket/a"
    assert config.state_dir == Path("/var/lib/suanli")


def test_the_database_is_found_in_the_order_that_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUANLI_DATABASE_URL", raising=False)
    assert config_from({"state_dir": "s"}, tmp_path).database == f"sqlite:///{tmp_path}/s/suanli.db"
    monkeypatch.setenv("SUANLI_DATABASE_URL", "postgresql://env/d")
    assert config_from({"state_dir": "s"}, tmp_path).database == "postgresql://env/d"
    assert config_from({"state_dir": "s", "database_url": "sqlite:////x"}, tmp_path).database == "sqlite:////x"


def test_issuers_are_read_whole(tmp_path: Path) -> None:
    issuer = {
        "issuer": "https://id.example",
        "audience": "suanli",
        "client_id": "cli",
        "title": "Example",
        "scopes": ["openid"],
        "algorithms": ["ES256", "EdDSA"],
        "token_types": ["at+jwt", "JWT"],
        "jwks_url": "http://127.0.0.1:8/keys",
        "ca": "ca.pem",
        "institutions": ["tongji"],
        "platform_users": False,
        "institution_names": {"tongji.edu.cn": "tongji"},
        "role_names": {"admins": "institution-admin"},
        "user_prefix": "t-",
        "claims": {"user": "name", "institution": "home", "project": "p", "roles": "realm_access.roles"},
        "required_claims": ["jti"],
        "clock_skew_s": 60,
        "max_token_age_s": 60,
        "provision": True,
    }
    assert set(issuer) == {f.name for f in fields(Issuer)}
    read = config_from({"state_dir": "s", "oidc": {"issuers": [issuer]}}, tmp_path).oidc.issuers[0]
    assert read.claims.roles == "realm_access.roles"
    assert (read.ca, read.scopes, read.provision) == (tmp_path / "ca.pem", ("openid",), True)
    assert read.institution_names == {"tongji.edu.cn": "tongji"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"algorithms": ["HS256"]}, "oidc.issuers[0].algorithms: 'HS256' is not taken"),
        ({"algorithms": ["none"]}, "algorithms: 'none' is not taken"),
        ({"algorithms": []}, "algorithms: '' is not taken"),
        ({"algorithms": "RS256"}, "algorithms: 'RS256' is not a list"),
        ({"issuer": "http://id.example"}, "issuer: http://id.example is not https"),
        ({"issuer": "id.example"}, "issuer: 'id.example' is not a URL"),
        ({"issuer": "https://user:pass@id.example"}, "is not a URL"),
        ({"jwks_url": "http://127.0.0.1.evil.example/"}, "jwks_url"),
        ({"audience": ""}, "audience: it is missing"),
        ({"institutions": []}, "institutions: it is empty"),
        ({"clock_skew_s": 61}, "clock_skew_s: 61 is out of range"),
        ({"max_token_age_s": 0}, "max_token_age_s: 0 is out of range"),
        ({"provision": 1}, "provision: 1 is not true or false"),
        ({"provision": True, "institutions": ["a", "b"]}, "provision: name claims.institution"),
        ({"role_names": {"x": "root"}}, "role_names: 'x' is mapped to 'root'"),
        ({"role_names": ["x"]}, "role_names: give keys and values"),
        ({"token_types": ["id"]}, "token_types: give at+jwt"),
        ({"token_types": ["JWT"], "client_id": "suanli"}, "audience: with token_types JWT"),
        ({"claims": {"user": ""}}, "claims.user: it is missing"),
        ({"claims": {"usr": "x"}}, "claims.usr: there is no such setting; did you mean"),
    ],
)
def test_an_issuer_that_cannot_be_trusted_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    issuer = {"issuer": "https://id.example", "audience": "suanli", "institutions": ["tongji"], **change}
    with pytest.raises(ConfigurationError) as caught:
        config_from({"state_dir": "s", "oidc": {"issuers": [issuer]}}, tmp_path)
    assert words in str(caught.value)


def test_an_issuer_stands_there_once(tmp_path: Path) -> None:
    issuer = {"issuer": "https://id.example", "audience": "suanli", "institutions": ["tongji"]}
    with pytest.raises(ConfigurationError, match=r"oidc\.issuers: an issuer stands there twice"):
        config_from({"state_dir": "s", "oidc": {"issuers": [issuer, issuer]}}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lisen": "x"}, "lisen: there is no such setting; did you mean listen?"),
        ({"tls": {"cert": "a", "kee": "b"}}, "tls.kee: there is no such setting; did you mean tls.key?"),
        ({"tls": {"cert": "a"}}, "tls.key: it is missing"),
        ({"tls": "yes"}, "tls: give keys and values"),
        ({"tls": {"cert": "a", "key": "b", "agent_ca_key": "c"}}, "tls.agent_ca_key: give tls.agent_ca_cert too"),
        (
            {"tls": {"cert": "a", "key": "b", "agents_need_certificates": 1}},
            "tls.agents_need_certificates: 1 is not true or false",
        ),
        ({"agents_listen": "127.0.0.1:0"}, "agents_listen: give tls.agent_ca_cert"),
        ({"agents_listen": "x"}, "agents_listen: 'x' is not an address"),
        (
            {"limits": {"user_streems": 1}},
            "limits.user_streems: there is no such setting; did you mean limits.user_streams?",
        ),
        ({"limits": {"user_streams": -1}}, "limits.user_streams: -1 is out of range"),
        ({"limits": {"user_calls_burst": 0}}, "limits.user_calls_burst: give at least 1"),
        ({"listen": "50051"}, "listen: '50051' is not an address"),
        ({"listen": "127.0.0.1:99999"}, "listen: "),
        ({"metrics_listen": "x:"}, "metrics_listen: "),
        ({"heartbeat_interval_ms": "5s"}, "heartbeat_interval_ms: '5s' is not a whole number"),
        ({"heartbeat_interval_ms": True}, "heartbeat_interval_ms: True is not a whole number"),
        ({"heartbeat_interval_ms": 99}, "heartbeat_interval_ms: 99 is out of range"),
        ({"lease_ttl_ms": 14_999}, "lease_ttl_ms: 14999 is out of range; give 15,000 to 600,000"),
        ({"log_level": "loud"}, "log_level"),
        ({"ready_file": ""}, "ready_file: give a path"),
        ({"database_url": 5}, "database_url: 5 is not a text"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config_from({"state_dir": "s"} | changes, tmp_path)
    assert words in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(path)
    path.write_text("a: [")
    with pytest.raises(ConfigurationError, match="not readable YAML"):
        load_config(path)
    path.write_text("")
    with pytest.raises(ConfigurationError, match="keys and values"):
        load_config(path)
    path.write_text("listen: 127.0.0.1:0\n")
    with pytest.raises(ConfigurationError, match="state_dir: it is missing"):
        load_config(path)


def test_addresses() -> None:
    assert split_address("[::1]:5", "listen") == ("::1", 5)
    assert split_address("localhost:0", "listen") == ("localhost", 0)
