"""Encrypted files show nothing without their key, and nothing that was changed passes for the content."""

from __future__ import annotations

import base64
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.cloudpickle

from tunewright.data.encryption import Cipher
from tunewright.data.rows import Document
from tunewright.data.shards import PackedRows, write_shard
from tunewright.data.tables import open_parquet, read_group, read_table, write_groups, write_table
from tunewright.errors import DataError, ShardCorrupt
from tunewright.security import crypto

KEY, OTHER = bytes(range(200, 232)), bytes(range(32))
CANARY = "canary-7f3a"
SPELLINGS = (KEY, KEY.hex().encode(), base64.b64encode(KEY), repr(KEY).encode())
"""How the key could be seen somewhere."""


@pytest.fixture
def cipher(monkeypatch: pytest.MonkeyPatch) -> Cipher:
    monkeypatch.setenv("DATA_KEY", KEY.hex())
    monkeypatch.setenv("OTHER_KEY", OTHER.hex())
    return Cipher("${DATA_KEY}")


def canaries(rows: int = 50) -> pa.Table:
    """The canary in a flat, a nested and a binary column, and in names."""
    texts = [f"{CANARY} {n}" for n in range(rows)]
    return pa.table(
        {
            f"{CANARY} text": texts,
            "nested": [[{"deep": text}] for text in texts],
            "bytes": pa.array([text.encode() for text in texts], pa.large_binary()),
            "number": np.arange(rows, dtype=np.int64) + 0x7273747576777879,
        }
    )


def holds_key(data: bytes) -> bool:
    return any(spelling in data for spelling in SPELLINGS)


def test_nothing_of_any_column_can_be_read_in_the_file(tmp_path: Path, cipher: Cipher) -> None:
    table = canaries(1)
    plain, sealed = tmp_path / "plain.parquet", tmp_path / "sealed.parquet"
    write_groups(plain, [table], table.schema)
    write_groups(sealed, [table], table.schema, cipher)
    seen = sealed.read_bytes()
    assert seen[:4] == seen[-4:] == b"PARE"  # the footer, with names and figures, is encrypted too
    assert plain.read_bytes().count(CANARY.encode()) >= 5  # three columns, and a name twice
    for secret in (CANARY.encode(), b"nested", b"deep", b"yxwvutsr"):
        assert secret in plain.read_bytes()
        assert secret not in seen
    assert not holds_key(seen)
    assert read_table(sealed, cipher=cipher).equals(table)


def test_every_column_is_encrypted_by_itself(tmp_path: Path, cipher: Cipher) -> None:
    # zstd hides text too: so each column alone, uncompressible, and looked for as it was.
    noise = np.random.default_rng(0).integers(0, 2**31, (4, 3, 4096), np.int32)
    table = pa.table(
        {
            "flat": noise[0].ravel(),
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(noise[1].ravel()), 1),
            "list": pa.ListArray.from_arrays(np.arange(12_289, dtype=np.int32), pa.array(noise[2].ravel())),
            "struct": pa.StructArray.from_arrays([pa.array(noise[3].ravel())], ["x"]),
        }
    )
    for name, column in zip(table.column_names, noise, strict=True):
        probe = column.tobytes()[4096:4112]
        write_table(tmp_path / "plain.parquet", table.select([name]))
        assert probe in (tmp_path / "plain.parquet").read_bytes(), name
        write_table(tmp_path / "sealed.parquet", table, cipher)
        assert probe not in (tmp_path / "sealed.parquet").read_bytes(), name


def test_the_data_key_is_of_256_bits_and_new_for_each_file(
    tmp_path: Path, cipher: Cipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped: list[bytes] = []
    wrap = crypto.LocalKms.wrap
    monkeypatch.setattr(
        crypto.LocalKms, "wrap", lambda self, key, key_id: (wrapped.append(key), wrap(self, key, key_id))[1]
    )
    for name in ("a.parquet", "b.parquet"):
        write_table(tmp_path / name, canaries(), cipher)
    assert [len(key) for key in wrapped] == [32, 32]
    assert len({*wrapped, KEY}) == 3
    assert (tmp_path / "a.parquet").read_bytes() != (tmp_path / "b.parquet").read_bytes()
    assert read_table(tmp_path / "a.parquet", None, cipher).equals(
        read_table(tmp_path / "b.parquet", None, cipher)
    )


def shard(folder: Path, cipher: Cipher | None, rows: int = 40) -> None:
    documents = [Document(np.full(8, n, np.int32), np.ones(8, np.int8)) for n in range(rows)]
    write_shard(folder / "shard-000.parquet", documents, [[n] for n in range(rows)], 8, cipher)


def test_encrypted_shards_are_read_as_others_are(
    tmp_path: Path, cipher: Cipher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.data.shards.TOKENS_PER_GROUP", 24)
    shard(tmp_path, cipher)
    rows = PackedRows(tmp_path, groups_kept=2, decryption=cipher.decryption())
    order = np.random.default_rng(0).permutation(40)
    assert rows.take(order)["input_ids"][:, 0].tolist() == order.tolist()


def test_one_row_group_is_read_among_empty_ones(tmp_path: Path, cipher: Cipher) -> None:
    table = canaries(6)
    parts = [table.slice(0, 0), table.slice(0, 4), table.slice(0, 0), table.slice(4)]
    write_groups(tmp_path / "a.parquet", iter(parts), table.schema, cipher)
    assert open_parquet(tmp_path / "a.parquet", cipher).num_row_groups == 4
    for number, part in enumerate(parts):
        assert read_group(tmp_path / "a.parquet", number, cipher=cipher).equals(part)
    assert read_group(tmp_path / "a.parquet", 3, ("number",), cipher).equals(
        table.slice(4).select(["number"])
    )


@pytest.mark.usefixtures("cipher")
def test_a_wrong_key_is_one_sentence(tmp_path: Path, cipher: Cipher) -> None:
    shard(tmp_path, cipher)
    sentence = (
        r"shard-000\.parquet: the key in \$\{OTHER_KEY\} is not the one that the data set was written with$"
    )
    with pytest.raises(DataError, match=sentence) as caught:
        PackedRows(tmp_path, decryption=Cipher("${OTHER_KEY}").decryption())
    assert not isinstance(caught.value, ShardCorrupt)
    with pytest.raises(DataError, match=sentence):
        read_table(tmp_path / "shard-000.parquet", cipher=Cipher("${OTHER_KEY}"))


def test_without_a_key_the_reader_says_which_setting_is_missing(tmp_path: Path, cipher: Cipher) -> None:
    shard(tmp_path, cipher)
    with pytest.raises(DataError, match=r"shard-000\.parquet is encrypted; say data\.encryption\.key"):
        PackedRows(tmp_path)


def test_a_file_in_the_clear_does_not_pass_for_an_encrypted_one(tmp_path: Path, cipher: Cipher) -> None:
    shard(tmp_path, None)
    with pytest.raises(ShardCorrupt, match=r"shard-000\.parquet is not encrypted, but the data set is"):
        PackedRows(tmp_path, decryption=cipher.decryption())


def test_a_missing_variable_is_named_where_the_key_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATA_KEY", raising=False)
    cipher = Cipher("${DATA_KEY}")  # a node that only passes it on does not need the key
    for use in (
        cipher.properties,
        cipher.decryption,
        lambda: write_table(tmp_path / "a", canaries(), cipher),
    ):
        with pytest.raises(DataError, match="the variable DATA_KEY is not set on "):
            use()
    assert not list(tmp_path.iterdir())


def test_every_changed_byte_is_found_out(tmp_path: Path, cipher: Cipher) -> None:
    shard(tmp_path, cipher)
    path = tmp_path / "shard-000.parquet"
    whole = path.read_bytes()
    expected = read_table(path, cipher=cipher)
    caught = unread = 0
    for at in range(0, len(whole), max(1, len(whole) // 200)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        try:
            found = read_table(path, cipher=cipher)
        except DataError as error:  # the id of the key stands in the clear: changed, it is another key's
            assert "shard-000.parquet" in str(error)
            assert isinstance(error, ShardCorrupt) or "is not the one" in str(error)
            caught += 1
        else:  # a byte without meaning, such as the magic at the beginning
            assert found.equals(expected)
            unread += 1
    assert caught > 150
    assert unread < caught / 20


@pytest.mark.parametrize("dumps", [pickle.dumps, ray.cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_a_cipher_travels_without_its_key(
    tmp_path: Path, cipher: Cipher, dumps: Callable[[object], bytes]
) -> None:
    write_table(tmp_path / "a.parquet", canaries(), cipher)
    cipher.decryption()
    sent = dumps({"cipher": cipher})
    assert not holds_key(sent)
    assert b"DATA_KEY" in sent
    arrived = pickle.loads(sent)["cipher"]
    assert arrived == cipher
    assert hash(arrived) == hash(cipher)
    assert arrived != Cipher("${OTHER_KEY}")
    assert read_table(tmp_path / "a.parquet", cipher=arrived).equals(canaries())


def test_the_key_shows_in_no_representation_and_no_traceback(tmp_path: Path, cipher: Cipher) -> None:
    write_table(tmp_path / "a.parquet", canaries(), cipher)
    assert repr(cipher) == "Cipher('${DATA_KEY}')"
    assert not holds_key(repr(vars(cipher)).encode())
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-500])
    for failing in (cipher, Cipher("${OTHER_KEY}")):
        with pytest.raises(DataError) as caught:
            read_table(tmp_path / "a.parquet", cipher=failing)
        told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert not holds_key("".join(told.format()).encode())


@pytest.mark.parametrize("key", [KEY.hex(), "kms:vault", "", "file:"])
def test_a_cipher_is_told_where_the_key_is_and_not_the_key(key: str) -> None:
    with pytest.raises(DataError, match="say where it is") as caught:
        Cipher(key)
    assert KEY.hex() not in str(caught.value)


class Service:
    """A key service, as a plug-in brings it."""

    def wrap(self, data_key: bytes, key_id: str) -> str:
        return f"{key_id}:{data_key[::-1].hex()}"

    def unwrap(self, wrapped: str, key_id: str) -> bytes:
        if not wrapped.startswith(key_id):
            raise DataError(f"no access to {key_id}")
        return bytes.fromhex(wrapped.partition(":")[2])[::-1]


def test_files_are_encrypted_with_the_key_of_a_key_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name = "vault"

        def load(self) -> type[Service]:
            return Service

    monkeypatch.setattr(crypto, "entry_points", lambda group: [Point()] if group == "tunewright.kms" else [])
    cipher = Cipher("kms:vault/team-a")
    write_table(tmp_path / "a.parquet", canaries(), cipher)
    content = (tmp_path / "a.parquet").read_bytes()
    assert b"team-a" in content
    assert CANARY.encode() not in content
    assert read_table(tmp_path / "a.parquet", cipher=pickle.loads(pickle.dumps(cipher))).equals(canaries())
    (tmp_path / "a.parquet").write_bytes(content.replace(b"team-a:", b"team-b:"))
    with pytest.raises(DataError, match=r"a\.parquet: no access to team-a"):
        read_table(tmp_path / "a.parquet", cipher=cipher)
