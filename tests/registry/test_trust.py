"""Signatures, the policy that asks for them, provenance, checkpoints."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from journal_fakes import as_earlier_release, entry_of, read_entry, rewrite
from registry_fakes import draft, write_adapter, write_encoder

from genre.errors import InputError, IntegrityError, NotFoundError, TrustError
from genre.registry import Registry
from genre.registry.journal import Journal
from genre.registry.manifest import checksum_of, digest_of, render
from genre.registry.trust.actor import Author
from genre.registry.trust.keys import Signer, is_signed, read_public_key
from genre.registry.trust.policy import Trust

pytest.importorskip("cryptography", reason="signatures need the extra sign")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "bob"):
        Signer.generate(folder / name)
    return folder


@pytest.fixture
def place(tmp_path, keys):
    """Opens one registry as somebody with a key or without, who trusts some keys or asks for nothing."""

    def open_as(key=None, trusts=None):
        trust = Trust() if trusts is None else {"keys": [str(keys / f"{each}.pub") for each in trusts]}
        own = None if key is None else keys / key
        return Registry(tmp_path / "registry", actor=key or "nobody", trust=trust, sign_key=own)

    return open_as


def test_keys_are_what_openssl_makes(tmp_path, keys):
    signer = Signer.read(keys / "ann")
    digits = signer.key.removeprefix("ed25519:")
    assert read_public_key("ann.pub", keys) == read_public_key(f"ed25519:{digits.upper()}", keys) == signer.key
    assert (keys / "ann").stat().st_mode & 0o777 == 0o600 and "PRIVATE" not in repr(signer)
    if shutil.which("openssl"):
        made = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "made"], capture_output=True)
        assert made.returncode == 0
        public = subprocess.run(["openssl", "pkey", "-in", tmp_path / "made", "-pubout"], capture_output=True, check=True)
        (tmp_path / "made.pub").write_bytes(public.stdout)
        assert Signer.read(tmp_path / "made").key == read_public_key("made.pub", tmp_path)


def test_a_signature_is_over_its_kind_too(keys):
    """Against the encoding of DSSE's protocol, written out by hand."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signer = Signer.read(keys / "ann")
    signature = signer.sign("http://example.com/HelloWorld", b"hello world")
    by_hand = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer.key.partition(":")[2])).verify(signature, by_hand)
    assert is_signed(signer.key, "http://example.com/HelloWorld", b"hello world", signature)
    other = Signer.read(keys / "bob").key
    for key, kind, body in ((other, "k", b"b"), (signer.key, "other", b"b"), (signer.key, "k", b"c")):
        assert not is_signed(key, kind, body, signer.sign("k", b"b"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the private key cannot be read: got .*: no such file or directory; expected a PEM file"),
        ("", "not a usable key: got .*; expected a private Ed25519 key as PEM; genre registry keygen"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQ secret\n-----END PRIVATE KEY-----\n", "not a usable key"),
    ],
)
def test_a_file_that_is_no_key(tmp_path, content, message):
    if content is not None:
        (tmp_path / "key").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        Signer.read(tmp_path / "key")
    assert "secret" not in str(caught.value)


def test_a_private_key_in_the_place_of_its_path_is_never_shown(keys, monkeypatch):
    text = (keys / "ann").read_text()
    for given in (text, text.splitlines()[1]):
        monkeypatch.setenv("GENRE_SIGN_KEY", given)
        with pytest.raises(InputError) as caught:
            Registry(keys)
        assert str(caught.value) == "the private key cannot be read: got the key itself and not its file; expected a PEM file"


def test_keys_of_other_kinds_and_with_passphrases_are_refused(tmp_path, keys):
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    pem = (forms.Encoding.PEM, forms.PrivateFormat.PKCS8)
    (tmp_path / "ec").write_bytes(private.private_bytes(*pem, forms.NoEncryption()))
    (tmp_path / "locked").write_bytes(private.private_bytes(*pem, forms.BestAvailableEncryption(b"word")))
    with pytest.raises(InputError, match="expected a private Ed25519 key"):
        Signer.read(tmp_path / "ec")
    with pytest.raises(InputError, match="has a passphrase"):
        Signer.read(tmp_path / "locked")
    with pytest.raises(InputError, match="expected a public Ed25519 key"):
        read_public_key("ann", keys)
    with pytest.raises(InputError, match="a key is never overwritten"):
        Signer.generate(keys / "ann")
    for text in ("ed25519:12", "ed25519:" + "g" * 64):
        with pytest.raises(InputError, match="not a public key"):
            read_public_key(text, keys)


def test_a_policy_file(tmp_path, keys, monkeypatch):
    file, key = keys / "trust.yaml", Signer.read(keys / "bob").key
    file.write_text(f"registry:\n  trust:\n    keys: [ann.pub, '{key}', ann.pub]\n")
    found = Trust.read(file)
    assert found == Trust((Signer.read(keys / "ann").key, key), True)
    monkeypatch.setenv("GENRE_TRUST", str(file))
    assert Registry(tmp_path / "r").trust == found and Registry(tmp_path / "r", trust=Trust()).trust == Trust()
    for text, message in (
        ("keys: []", "has another form: got .*keys; expected registry: {trust:"),
        ("registry: {trust: {keys: []}}", "keys.*at least 1"),
        ("registry: {trust: {require: true}}", "registry.trust has no keys"),
        ("registry: {trust: {keys: [ann.pub], requires: 1}}", "registry.trust has an unknown field: got requires"),
        ("registry: {trust: {keys: [gone.pub]}}", "the public key cannot be read"),
        ("registry: {trust: 3}", "registry.trust has another form"),
        ("[", "cannot be read"),
        ("", "another form"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            Trust.read(file)
    with pytest.raises(InputError, match="registry.trust is not a JSON object: got .'ann.pub'."):
        Registry(tmp_path / "r", trust=["ann.pub"])
    monkeypatch.setenv("GENRE_TRUST", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="the trust policy cannot be read"):
        Registry(tmp_path / "r")


def test_what_is_published_and_moved_with_a_key_is_loaded_under_a_policy(place, adapter):
    ann = place("ann", ["ann"])
    first = ann.publish(adapter(), draft(), alias="production")
    second = ann.publish(adapter(1), draft(), alias="candidate")
    ann.promote(second, floor={"auc": 0.5})
    reader = place(trusts=["ann", "bob"])
    assert reader.resolve("like@production") == second and reader.fetch("like").is_dir() and reader.verify() == []
    ann.rollback("like")
    assert reader.resolve("like@production") == first
    assert ann.publish(adapter(), draft(), alias=()).digest == first.digest, "the same content once more"
    ann.promote(second)
    ann.promote(second, "old"), ann.promote(first, "old")
    assert ann.verify() == [] and place().verify() == []


@pytest.mark.parametrize("writer", [None, "bob"])
def test_what_nobody_or_another_key_signed_is_refused(place, adapter, writer):
    version = place(writer).publish(adapter(), draft(), alias="production")
    reader = place(trusts=["ann"])
    with pytest.raises(TrustError, match="like@production was moved without a trusted signature: got entry 2 by"):
        reader.resolve("like@production")
    got = "got none" if writer is None else "got one by ed25519:"
    for act in (reader.fetch, lambda ref: place("ann", ["ann"]).promote(ref)):
        with pytest.raises(TrustError, match=f"{version.ref} has no trusted signature and is not loaded: {got}"):
            act(version.ref)
    lines = [str(problem) for problem in reader.verify()]
    assert len(lines) == 3 and sum("without a trusted signature" in line for line in lines) == 2
    assert place().resolve("like@production") == version and place().fetch("like").is_dir()


def test_a_policy_that_requires_nothing_refuses_nothing(place, adapter, keys):
    version = place().publish(adapter(), draft())
    lax = Registry(place().url, trust={"keys": [str(keys / "ann.pub")], "require": False})
    assert lax.fetch("like").is_dir() and lax.promote(version).version == version.version and lax.verify() == []


def test_a_version_that_was_sealed_again_is_refused(place, adapter):
    """Other weights under the old digits, with everything that needs no key made anew."""
    version = place("ann", ["ann"]).publish(adapter(), draft(), alias="production")
    folder = place().fetch(version)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["metrics"]["like"]["auc"]["value"] = 0.99
    raw["digest"] = version.version + digest_of(raw)[12:]  # a stand-in for the digest of a pair with 12 equal digits
    raw["checksum"] = checksum_of(raw)
    reader = place(trusts=["ann"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genre.registry.manifest.digest_of", lambda _: raw["digest"])
        (folder / "manifest.json").write_bytes(render(raw))
        with pytest.raises(TrustError, match="was sealed again after it was signed: got digest"):
            reader.fetch(version.ref)
        with pytest.raises(IntegrityError, match="is not the version that was named"):
            reader.resolve("like@production")
    with pytest.raises(IntegrityError, match="is damaged"):
        reader.fetch(version.ref)


def test_a_signature_file_that_is_not_right(place, adapter):
    ann = place("ann", ["ann"])
    version, other = ann.publish(adapter(), draft()), ann.publish(adapter(1), draft())
    (file,) = (Path(ann.url) / "like" / "signatures").glob(f"{version.version}-*.json")
    (of_other,) = (Path(ann.url) / "like" / "signatures").glob(f"{other.version}-*.json")
    good = json.loads(file.read_text())
    statement = json.loads(base64.b64decode(good["payload"]))
    assert statement["subject"][0] == {"name": version.ref, "digest": {"sha256": version.digest}}
    assert {row["name"] for row in statement["subject"][1:]} == version.manifest.files.keys()
    changed = base64.b64encode(json.dumps(statement | {"predicateType": "x"}).encode()).decode()
    for content, message in (
        (json.dumps(good | {"payload": changed}), "does not fit its content"),
        (json.dumps(good | {"payloadType": "application/json"}), "does not fit its content"),
        (json.dumps(good | {"signatures": []}), "does not fit its content"),
        (json.dumps(good | {"payload": "%"}), "has another form"),
        ("[]", "has another form"),
        ("{", "is not JSON"),
        (of_other.read_text(), "was sealed again after it was signed"),
    ):
        file.write_text(content)
        with pytest.raises(TrustError, match=message):
            ann.fetch(version.ref)
        assert any(message in str(problem) for problem in place().verify())
    file.unlink()
    with pytest.raises(TrustError, match="has no trusted signature"):
        ann.fetch(version.ref)
    assert ann.fetch(other.ref).is_dir()


def test_the_encoder_of_an_adapter_must_be_signed_too(place, adapter, tmp_path):
    nobody, ann = place(), place("ann", ["ann"])
    encoder = nobody.publish(write_encoder(tmp_path / "e"), draft("enc", kind="encoder", tasks=[], metrics={}), alias=())
    user = nobody.publish(adapter(), draft(encoder=encoder.digest), alias="production")
    with pytest.raises(TrustError, match=f"{encoder.ref} has no trusted signature"):
        ann.fetch(ann.find(encoder.digest))
    lines = ann.sign("like@production")
    assert [line.partition(",")[0] for line in lines[:2]] == [f"{user.ref} (adapter)", f"{encoder.ref} (encoder)"]
    reader = place(trusts=["ann"])
    assert reader.fetch(reader.find(encoder.digest)).is_dir() and reader.resolve("like@production") == user
    move = ann.history("like")[-1]
    assert (move.action, move.alias, move.previous, move.actor) == ("sign", "production", user.version, "ann")
    (line,) = [str(problem) for problem in reader.verify()]
    assert line.startswith("like@latest was moved without a trusted signature: got entry 1 by nobody, not signed")
    with pytest.raises(NotFoundError, match="nothing to roll back to"):
        ann.rollback("like")
    with pytest.raises(InputError, match="there is no key to sign with"):
        nobody.sign("like")


def test_a_move_needs_a_trusted_key_under_a_policy(place, adapter, tmp_path):
    version = place("ann").publish(adapter(), draft())
    for writer, got in ((None, "no key"), ("bob", "a key that is not trusted, ed25519:")):
        registry = place(writer, ["ann"])
        for act in (
            lambda registry=registry: registry.promote(version),
            lambda registry=registry: registry.rollback("like"),
            lambda registry=registry: registry.publish(adapter(1), draft()),
            lambda registry=registry: registry.check_writable("like"),
        ):
            with pytest.raises(TrustError, match=f"moves need a trusted key: got {got}.*; expected the private key of ed25519:"):
                act()
    assert len(place().history("like")) == 1
    registry = place(None, ["ann"])
    other = registry.publish(adapter(1), draft(), alias=())  # for somebody else to look at and sign
    place("ann", ["ann"]).sign(other.ref)
    assert registry.fetch(other.ref).is_dir()


def test_unsigned_entries_cannot_speak_for_other_aliases(place, adapter):
    """An entry without a signature whose state says that production is an older, signed version."""
    ann, nobody = place("ann", ["ann"]), place()
    first, second = (ann.publish(adapter(seed), draft()) for seed in range(2))
    ann.promote(first), ann.promote(second)
    old = read_entry(ann, 3)["state"]["production"]
    nobody.promote(first, "noise")
    reader = place(trusts=["ann"])
    assert reader.resolve("like@production") == second
    rewrite(entry_of(ann, 5), lambda raw: raw["state"].update(production=old))
    assert nobody.resolve("like@production") == first, "without a policy the newest entry is believed"
    assert reader.resolve("like@production") == second
    with pytest.raises(TrustError, match="like@noise was moved without"):
        reader.resolve("like@noise")
    with pytest.raises(IntegrityError, match="5.json of like does not follow from the entry before"):
        ann.promote(second, "staging")
    assert len(nobody.history("like")) == 5


def test_a_signed_entry_cannot_be_changed_or_used_elsewhere(place, adapter):
    ann = place("ann", ["ann"])
    ann.publish(adapter(), draft()), ann.publish(adapter(), draft("other"))
    whole = entry_of(ann, 1).read_bytes()
    for change in (
        lambda raw: raw.update(actor="ann "),
        lambda raw: raw.update(created="2020-01-01T00:00:00Z"),
        lambda raw: raw.update(signature=read_entry(ann, 1, "other")["signature"]),
        lambda raw: raw.update(signature=None),
        as_earlier_release,
    ):
        rewrite(entry_of(ann, 1), change)
        with pytest.raises(TrustError, match="like@latest was moved without a trusted signature"):
            ann.resolve("like")
        entry_of(ann, 1).write_bytes(whole)
    rewrite(entry_of(ann, 1), lambda raw: raw.update(signature={"key": "x", "value": ""}))
    with pytest.raises(IntegrityError, match="is damaged"):
        ann.resolve("like")


def test_a_roll_back_under_a_policy_counts_signed_moves_only(place, adapter):
    ann, nobody = place("ann", ["ann"]), place()
    first, second, third = (ann.publish(adapter(seed), draft()) for seed in range(3))
    ann.promote(first), nobody.promote(third), ann.promote(second)
    assert ann.rollback("like").digest == first.digest


def test_a_roll_back_of_a_move_that_nobody_trusts_leads_to_the_last_trusted_one(place, adapter):
    ann, nobody = place("ann", ["ann"]), place()
    first, second, third = (ann.publish(adapter(seed), draft()) for seed in range(3))
    ann.promote(first), ann.promote(second), nobody.promote(third)
    assert ann.rollback("like").digest == second.digest == ann.resolve("like@production").digest
    assert ann.rollback("like").digest == first.digest
    with pytest.raises(NotFoundError, match="nothing to roll back to"):
        ann.rollback("like")


def test_whoever_signs_has_followed_the_journal(place, adapter, keys):
    nobody = place()
    first, second = (nobody.publish(adapter(seed), draft()) for seed in range(2))
    nobody.promote(first)
    for number in (1, 2, 3):
        rewrite(entry_of(nobody, number), as_earlier_release)
    journal = Journal(nobody.store, "like", Author("ann", Signer.read(keys / "ann")))
    assert journal.append("production", second.version, "promote", digest=second.digest).n == 4
    assert place(trusts=["ann"]).resolve("like@production").digest == second.digest
    rewrite(entry_of(nobody, 2), lambda raw: raw["state"]["latest"].update(version=first.version, n=1))
    assert journal.append("candidate", first.version, "promote", digest=first.digest).n == 5, "entry 4 is signed"
    entry_of(nobody, 5).unlink(), entry_of(nobody, 4).unlink()
    with pytest.raises(IntegrityError):
        journal.append("candidate", first.version, "promote", digest=first.digest)


def test_the_manifest_says_where_a_version_comes_from(place, adapter):
    version = place("ann").publish(adapter(), draft(code_version="0.1.0"))
    found = version.manifest.provenance
    assert found["runDetails"]["builder"] == {"id": "ann", "version": {"genre": "0.1.0"}}
    (task,) = found["runDetails"]["byproducts"]
    assert task["annotations"]["protocol"] == "prequential" and task["annotations"]["metrics"]["auc"]["value"] == 0.75
    definition = found["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == {"sha256": version.manifest.files["recipe.yaml"]}
    assert {row["name"]: row["digest"]["sha256"] for row in definition["resolvedDependencies"]} == {
        "base": "f" * 64,
        "data": "d" * 64,
        "tokenizer": "t" * 64,
    }
    again = place("bob").publish(adapter(), draft(code_version="0.1.0"))
    assert again.digest == version.digest and again.manifest.provenance == found, "who published it is no content"
    assert place().verify() == [] and "provenance" not in "".join(place().diff(version, again))


def test_a_checkpoint_tells_a_rollback_of_the_whole_store(place, adapter, tmp_path):
    ann = place("ann", ["ann"])
    first = ann.publish(adapter(), draft(), alias="production")
    ann.publish(adapter(), draft("other"))
    shutil.copytree(ann.url, tmp_path / "earlier")
    second = ann.publish(adapter(1), draft(), alias="production")
    seen = ann.checkpoint(tmp_path / "seen.json")
    assert ann.verify(since=seen) == []
    ann.promote(first), ann.publish(adapter(2), draft("third"))
    assert ann.verify(since=seen) == [] and ann.verify("like", since=seen) == []
    shutil.rmtree(ann.url)
    shutil.copytree(tmp_path / "earlier", ann.url)
    assert ann.verify() == [], "the store alone cannot tell"
    found = [str(problem) for problem in ann.verify(since=seen)]
    assert "like was rolled back or cut: its journal has 2 entries, and had 4 at the checkpoint of " in found[0]
    assert found[1].startswith(f"{second.ref} was there at the checkpoint of") and len(found) == 2
    ann.publish(adapter(3), draft(), alias="production")  # another way on from the earlier state
    assert any("like has another history" in str(problem) for problem in ann.verify(since=seen))
    shutil.rmtree(Path(ann.url) / "other"), shutil.rmtree(Path(ann.url) / ".heads")
    assert any(
        str(problem).startswith("other was rolled back or cut: its journal has 0") for problem in ann.verify("other", since=seen)
    )


def test_a_deletion_after_a_checkpoint_is_no_rollback(place, adapter, tmp_path):
    nobody = place()
    first = nobody.publish(adapter(), draft())
    rewrite(entry_of(nobody, 1), as_earlier_release)
    shutil.rmtree(Path(nobody.url) / ".heads")
    nobody.publish(adapter(1), draft())
    seen = nobody.checkpoint(tmp_path / "seen.json")
    nobody.delete(first.ref)
    assert nobody.verify(since=seen) == []


def test_a_checkpoint_is_signed_or_refused(place, adapter, tmp_path):
    ann, reader = place("ann", ["ann"]), place(trusts=["ann"])
    ann.publish(adapter(), draft())
    seen = ann.checkpoint(tmp_path / "seen.json")
    raw = json.loads(seen.read_text())
    lower = {"like": raw["names"]["like"] | {"n": 2}}
    for content, kind, message in (
        (render(raw | {"names": lower}), IntegrityError, "the checkpoint is damaged"),
        (sealed(raw | {"names": lower}), IntegrityError, "the signature of the checkpoint does not fit its content"),
        (sealed(raw | {"signature": None}), TrustError, "not signed by a trusted key: got no signature"),
        (place("bob").checkpoint(tmp_path / "bob.json").read_bytes(), TrustError, "not signed by a trusted key: got ed25519:"),
        (sealed(raw | {"names": {"../x": lower["like"]}}), InputError, "the checkpoint cannot be used"),
        (sealed(raw | {"signature": {"key": "x", "value": "zz"}}), IntegrityError, "does not fit its content"),
        (sealed(raw | {"schema": 2}), InputError, "schema"),
        (b"[]", InputError, "not a JSON object"),
        (b"", IntegrityError, "not JSON"),
    ):
        seen.write_bytes(content)
        with pytest.raises(kind, match=message):
            reader.verify(since=seen)
    with pytest.raises(InputError, match="the checkpoint cannot be read: got .*; expected what genre registry checkpoint wrote"):
        reader.verify(since=tmp_path / "gone")
    assert place().verify(since=place().checkpoint(tmp_path / "unsigned.json")) == []


def sealed(raw):
    del raw["checksum"]
    return render(raw | {"checksum": checksum_of(raw)})


def test_signatures_go_with_their_version(place, adapter, tmp_path):
    ann = place("ann")
    first = ann.publish(adapter(), draft())
    ann.publish(adapter(1), draft())
    folder = Path(ann.url) / "like" / "signatures"
    assert len(list(folder.iterdir())) == 2
    ann.delete(first.ref)
    assert len(list(folder.iterdir())) == 1 and ann.verify() == []
    (folder / f"{first.version}-{'0' * 64}.json").write_text("{}")
    (folder / "odd.json").write_text("{}")
    lines = {str(problem) for problem in ann.verify()}
    assert lines == {
        f"like/signatures/{first.version}-{'0' * 64}.json belongs to no version",
        "like/signatures/odd.json does not belong here",
    }


def test_a_remote_store_holds_signatures_too(tmp_path, keys):
    url, trust = f"memory://{tmp_path.name}", {"keys": [str(keys / "ann.pub")]}
    ann = Registry(url, cache=tmp_path / "cache", sign_key=keys / "ann", trust=trust)
    first = ann.publish(write_adapter(tmp_path / "a"), draft(), alias="production")
    reader = Registry(url, cache=tmp_path / "other", trust=trust)
    assert reader.fetch("like@production").is_dir() and reader.verify() == []
    ann.publish(write_adapter(tmp_path / "b", seed=1), draft(), alias="production")
    ann.delete(first.ref)
    assert reader.verify() == [] and len(ann.store.files("like", "signatures")) == 1
    with pytest.raises(TrustError, match="has no trusted signature"):
        Registry(url, cache=tmp_path / "other", trust={"keys": [str(keys / "bob.pub")]}).fetch(
            "like:" + reader.versions("like")[0]
        )
