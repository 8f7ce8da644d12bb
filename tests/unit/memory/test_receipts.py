"""Keys of receipts, and who is named by a write."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2
from janus_kit.configuration import SettingsError
from janus_kit.settings import PostgresSettings, RedisSettings
from janus_memory.adapters.receipt_keys import ReceiptKeys
from janus_memory.app import mount
from janus_memory.erasure import Receipt
from janus_memory.receipts import ReceiptError, key_id, private_key, verify_receipt
from janus_memory.settings import MemorySettings
from janus_memory.wire.erasures import receipt_to
from janus_memory.wire.writes import request_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
BASE64 = base64.b64encode(bytes(range(32))).decode()
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
OTHER_KIND = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize("text", [BASE64, PEM])
async def test_a_configured_key_signs_for_every_tenant(text: str) -> None:
    tx: Any = None
    signer = await ReceiptKeys(text).signer(tx)
    receipt = signer.signed(Receipt("era_1", datetime(2026, 1, 2, 3, 4, 5, 678, UTC), {"b": 2, "a": 1}, "why"))
    assert receipt.key_id == key_id(KEY)
    verify_receipt(receipt_to(receipt), key_id(KEY))


@pytest.mark.parametrize("text", ["", "no key", BASE64[:-8], PEM[:60], PEM.replace("M", "N"), OTHER_KIND])
async def test_what_is_no_key_is_refused_at_the_start_and_not_shown(text: str) -> None:
    with pytest.raises(ReceiptError) as raised:
        private_key(text)
    assert not text or text not in str(raised.value)
    if text:
        with pytest.raises(SettingsError, match=r"^memory\.receipt_key: must be an Ed25519 key"):
            async with mount(MemorySettings(receipt_key=text), postgres=PostgresSettings(), redis=RedisSettings()):
                pass


@given(
    st.builds(
        pb.EraseReceipt,
        id=st.text(max_size=8),
        reason=st.text(max_size=8),
        counts=st.lists(st.builds(pb.EraseCount, store=st.text(max_size=4), removed=st.integers(0, 9)), max_size=3),
    ),
    st.binary(max_size=80),
)
def test_a_signature_of_something_else_is_never_taken(receipt: pb.EraseReceipt, signature: bytes) -> None:
    receipt.signature, receipt.key_id = signature, key_id(KEY)
    with pytest.raises(ReceiptError):
        verify_receipt(receipt, key_id(KEY))


@pytest.mark.parametrize(
    "name", ["", "ed25519:", "ed25519:é", "ed25519:AAAA", key_id(KEY)[8:], "rsa:" + key_id(KEY)[8:]]
)
def test_a_name_that_holds_no_key_is_refused(name: str) -> None:
    with pytest.raises(ReceiptError):
        verify_receipt(pb.EraseReceipt(id="x", key_id=name), name)


def test_a_write_is_about_every_subject_that_its_scopes_name() -> None:
    request = pb.RememberRequest(
        scope=scope_pb2.Scope(subject="ann"),
        memories=[
            record_pb2.Memory(text="a", scope=scope_pb2.Scope(subject="bob")),
            record_pb2.Memory(text="b", scope=scope_pb2.Scope(subject="ann")),
            record_pb2.Memory(text="c"),
        ],
    )
    assert request_of("Remember", request).subjects == ("ann", "bob")
    assert request_of("PutBlock", pb.PutBlockRequest(block={"scope": {"subject": "cid"}})).subjects == ("cid",)
    assert request_of("PutSpace", pb.PutSpaceRequest()).subjects == ()
