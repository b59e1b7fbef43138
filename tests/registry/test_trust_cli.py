"""Keys, signatures, policies and checkpoints on the command line."""

import json
import os
import shutil
import sys

import pytest
from registry_fakes import draft, write_adapter

from genre.cli import main
from genre.registry import Registry

pytest.importorskip("cryptography", reason="signatures need the extra sign")


@pytest.fixture
def place(tmp_path, capsys):
    Registry(tmp_path / "registry").publish(write_adapter(tmp_path / "a"), draft(), alias="production")
    assert main(["registry", "keygen", str(tmp_path / "release.key")]) == 0
    wrote, key = capsys.readouterr().out.splitlines()
    assert "nobody else should read" in wrote and key.startswith("ed25519:")
    (tmp_path / "trust.yaml").write_text(f'registry: {{trust: {{keys: ["{key}"]}}}}\n')
    return tmp_path


def call(place, capsys, *arguments, code=0):
    assert main(["registry", *arguments, "--registry", str(place / "registry")]) == code
    shown = capsys.readouterr()
    return shown.out if code == 0 else shown.out + shown.err


def test_from_a_key_to_a_registry_that_is_trusted(place, capsys):
    trust, key = ("--trust", str(place / "trust.yaml")), ("--key", str(place / "release.key"))
    refused = call(place, capsys, "export", "like@production", "--out", str(place / "out"), *trust, code=2)
    assert "like@production was moved without a trusted signature: got entry 2 by" in refused
    assert "genre registry sign like@production --key KEY" in refused
    found = call(place, capsys, "verify", *trust, code=1)
    assert "the registry is damaged or not signed: got 3 problems in 1 version; restore what is damaged" in found
    signed = call(place, capsys, "sign", "like@production", "like@latest", *key)
    assert signed.count("signed like:") == 2 and "signed like@production → " in signed and "entry 4" in signed
    assert "1 version, all intact" in call(place, capsys, "verify", *trust)
    assert call(place, capsys, "promote", "like", "staging", *trust, code=2).count("moves need a trusted key: got no key") == 1
    assert "like@staging: nothing → " in call(place, capsys, "promote", "like", "staging", *trust, *key)
    assert "moves need a trusted key" in call(place, capsys, "rollback", "like@staging", *trust, code=2)
    shown = call(place, capsys, "show", "like@staging", *trust)
    assert "made by" in shown and "signature by" in shown
    assert "by" in call(place, capsys, "history", "like").split("checks")[0]
    assert "GENRE_TRUST" not in os.environ


def test_the_environment_names_the_policy_and_the_key(place, capsys, monkeypatch):
    monkeypatch.setenv("GENRE_TRUST", str(place / "trust.yaml"))
    assert "without a trusted signature" in call(place, capsys, "show", "like", code=2)
    monkeypatch.setenv("GENRE_SIGN_KEY", str(place / "release.key"))
    monkeypatch.setenv("GENRE_ACTOR", "release job 7")
    call(place, capsys, "sign", "like@latest")
    assert call(place, capsys, "show", "like") and os.environ["GENRE_TRUST"] == str(place / "trust.yaml")
    assert Registry(place / "registry").history("like")[-1].actor == "release job 7"
    assert "the trust policy cannot be read" in call(place, capsys, "show", "like", "--trust", "gone.yaml", code=2)


def test_a_checkpoint_is_kept_and_compared(place, capsys):
    file, key = place / "seen.json", ("--key", str(place / "release.key"))
    assert "not signed: there is no key" in call(place, capsys, "checkpoint", "--out", str(file))
    assert f"wrote {file}, signed by ed25519:" in call(place, capsys, "checkpoint", "--out", str(file), *key)
    assert json.loads(file.read_text())["names"]["like"]["n"] == 2
    trust = ("--trust", str(place / "trust.yaml"))
    call(place, capsys, "sign", "like@latest", "like@production", *key)
    assert "all intact" in call(place, capsys, "verify", "--checkpoint", str(file), *trust)
    for number in (2, 3, 4):
        (place / "registry" / "like" / "aliases" / f"{number}.json").unlink()
    (place / "registry" / ".heads" / "like" / "head.json").unlink()
    found = call(place, capsys, "verify", "--checkpoint", str(file), code=1)
    assert "like was rolled back or cut: its journal has 1 entries, and had 2 at the checkpoint of" in found
    file.write_text("{}")
    assert "the checkpoint has no created" in call(place, capsys, "verify", "--checkpoint", str(file), code=2)


def test_a_checkpoint_is_of_something_that_is_whole(place, capsys):
    file = str(place / "seen.json")
    assert main(["registry", "checkpoint", "--out", file, "--registry", str(place / "typo")]) == 2
    assert "there is nothing to make a checkpoint of: got the registry at" in capsys.readouterr().err
    call(place, capsys, "checkpoint", "--out", file)
    (place / "registry" / "like" / "aliases" / "2.json").unlink()
    assert "like/aliases is cut: it ends with 1.json" in call(place, capsys, "checkpoint", "--out", file, code=2)
    shutil.rmtree(place / "registry")
    wiped = call(place, capsys, "verify", "--checkpoint", file, code=1)
    assert "like was rolled back or cut: its journal has 0 entries" in wiped and "the registry is damaged: got " in wiped


def test_a_signature_that_does_not_hold_is_shown_as_wrong(place, capsys):
    call(place, capsys, "sign", "like", "--key", str(place / "release.key"))
    assert "│ signature by" in call(place, capsys, "show", "like")
    (file,) = (place / "registry" / "like" / "signatures").iterdir()
    file.write_text(file.read_text().replace('"sig": "', '"sig": "AAAA'))
    assert "│ wrong signature by" in call(place, capsys, "show", "like")


def test_signatures_without_the_library_that_checks_them(place, capsys, monkeypatch):
    call(place, capsys, "sign", "like", "--key", str(place / "release.key"))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert "genre: signatures need another package" in call(place, capsys, "verify", code=2)
    assert "not checked: signatures need another package" in call(place, capsys, "show", "like")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sign", "like"], "there is no key to sign with: name one with --key, or with GENRE_SIGN_KEY"),
        (["sign", "like", "--key", "gone.key"], "the private key cannot be read: got gone.key"),
        (["sign", "like:000000000000", "--key", "{key}"], "no version like:000000000000"),
        (["promote", "like", "--recheck"], "--recheck has nothing to hold the figures against: expected --floor or --not-worse"),
        (["promote", "like", "--recheck", "--floor", "auc=0.1"], "--recheck needs data to measure on: expected --data DIR"),
        (["verify", "--checkpoint", "gone.json"], "the checkpoint cannot be read: got gone.json: no such file"),
        (["verify", "--trust", "{key}"], "the trust policy"),
    ],
)
def test_what_cannot_be_done_is_said(place, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("GENRE_DATA", raising=False)
    given = [each.replace("{key}", str(place / "release.key")) for each in arguments]
    assert message in " ".join(call(place, capsys, *given, code=2).split())


def test_a_key_is_never_overwritten(place, capsys):
    for there in (str(place / "release.key"), ""):  # an empty argument is the folder
        assert main(["registry", "keygen", there]) == 2
        assert "a key is never overwritten" in capsys.readouterr().err


def test_files_are_made_in_new_folders_too(place, capsys):
    key = place / "keys" / "new.key"
    assert main(["registry", "keygen", str(key)]) == 0 and key.stat().st_mode & 0o777 == 0o600
    assert "signed by" in call(place, capsys, "checkpoint", "--out", str(place / "seen" / "new.json"), "--key", str(key))
    assert main(["registry", "keygen", str(place / "trust.yaml" / "new.key")]) == 2
    assert "a key lies in a file" in capsys.readouterr().err
