"""Dead letters: what indexing and extractions gave up on, why, and trying it again."""

from janus_kit.errors import NotFound
from janus_kit.ids import new_id
from janus_memory.extraction import KIND as EXTRACT
from janus_memory.ports import DeadLetters, Records


class Replay:
    """Looks at dead letters, and has them tried again. For operators: it crosses tenants when asked to."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def reasons(self, tenant: str = "", space: str = "") -> list[DeadLetters]:
        """Dead letters by tenant, space and reason, most first; of one tenant, of one space of it, or of all.

        Raises NotFound for a space that is not there.
        """
        found: list[DeadLetters] = []
        for name in await self._tenants(tenant):
            number = await self._number(name, space)
            async with self._records.transaction(name) as tx:
                found += [each._replace(tenant=name) for each in await tx.dead_letters(number)]
        return sorted(found, key=lambda each: -each.rows)

    async def run(self, tenant: str = "", space: str = "") -> int:
        """Give writes back to the indexer, as if they had never failed, and ask models again; how many.

        Raises NotFound for a space that is not there.
        """
        replayed = 0
        for name in await self._tenants(tenant):
            number = await self._number(name, space)
            async with self._records.transaction(name) as tx:
                replayed += await tx.replay_dead(number)
                for letter in await tx.take_dead_answers(number):
                    await tx.add_operation(
                        new_id("op"), EXTRACT, letter.arguments, letter.requested_by, letter.subjects
                    )
                    replayed += 1
        return replayed

    async def _tenants(self, tenant: str) -> list[str]:
        return [tenant] if tenant else await self._records.tenants_with_dead_letters()

    async def _number(self, tenant: str, space: str) -> int:
        """The space's number; 0 for all."""
        if not space:
            return 0
        async with self._records.transaction(tenant) as tx:
            found = await tx.space(space)
        if found is None:
            raise NotFound("space", space)
        return found.number
