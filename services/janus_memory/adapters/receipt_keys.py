"""Keys that receipts are signed with: the settings' own, or one a tenant in Postgres."""

import secrets
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from janus_memory.erasure import Receipt, Signer
from janus_memory.ports import Transaction
from janus_memory.receipts import SEED_BYTES, key_id, private_key, signed_bytes
from janus_memory.wire.erasures import receipt_to


class ReceiptKeys:
    """Implements ports.Receipts. Without a key of the settings a tenant's is made with its first receipt."""

    def __init__(self, configured: str | None) -> None:
        self._configured = _Key(private_key(configured)) if configured else None

    async def signer(self, tx: Transaction) -> Signer:
        if self._configured is not None:
            return self._configured
        return _Key(Ed25519PrivateKey.from_private_bytes(await tx.receipt_seed(secrets.token_bytes(SEED_BYTES))))


class _Key:
    """Implements erasure.Signer."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def signed(self, receipt: Receipt) -> Receipt:
        signature = self._key.sign(signed_bytes(receipt_to(receipt)))
        return replace(receipt, signature=signature, key_id=key_id(self._key))
