"""Receipts of erasures: how they are signed, and how anybody checks one.

The key's name is the public key itself, so a receipt says which key to ask for,
and whoever has kept the name from before needs nothing else.
"""

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from janus_api.memory.v1 import memory_service_pb2 as pb

_PREFIX = "ed25519:"
SEED_BYTES = 32


class ReceiptError(ValueError):
    """A receipt that the key did not sign, or a key that is none."""


def signed_bytes(receipt: pb.EraseReceipt) -> bytes:
    """What the signature is over: the receipt without `signature` and `key_id`, serialised deterministically."""
    bare = pb.EraseReceipt()
    bare.CopyFrom(receipt)
    bare.ClearField("signature")
    bare.ClearField("key_id")
    return bare.SerializeToString(deterministic=True)


def verify_receipt(receipt: pb.EraseReceipt, public_key: str) -> None:
    """Raises ReceiptError unless the key, named as in `key_id`, signed this receipt and nothing in it was changed."""
    if receipt.key_id != public_key:
        raise ReceiptError("the receipt was signed with another key")
    try:
        Ed25519PublicKey.from_public_bytes(_decoded(public_key)).verify(receipt.signature, signed_bytes(receipt))
    except InvalidSignature:
        raise ReceiptError("the receipt was changed after it had been signed") from None


def private_key(text: str) -> Ed25519PrivateKey:
    """A key as PEM, or as the base64 of its 32 bytes. Raises ReceiptError, which shows nothing of it."""
    try:
        if "PRIVATE KEY" in text:
            key = load_pem_private_key(text.encode(), password=None)
            if isinstance(key, Ed25519PrivateKey):
                return key
        else:
            return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, binascii.Error):
        pass
    raise ReceiptError("must be an Ed25519 key: PEM without a password, or the base64 of its 32 bytes")


def key_id(key: Ed25519PrivateKey) -> str:
    """The public key as receipts name it."""
    return _PREFIX + base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")


def _decoded(public_key: str) -> bytes:
    text = public_key.removeprefix(_PREFIX)
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raw = b""
    if not public_key.startswith(_PREFIX) or len(raw) != SEED_BYTES:
        raise ReceiptError("the key must be `ed25519:` and 32 bytes in base64url")
    return raw
