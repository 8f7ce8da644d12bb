"""Agents as data: put, get, list, delete. Every change makes a version; runs keep theirs."""

from janus_kit.auth.identity import acting_as
from janus_kit.clock import Clock
from janus_kit.errors import Aborted, NotFound
from janus_kit.validate import Violations
from janus_orchestration import identity
from janus_orchestration.idempotency import Once, once
from janus_orchestration.model import DEFAULT_SPACE, Agent, AgentSpec
from janus_orchestration.ports import Memory, Model, Records, Store
from janus_orchestration.tools import Toolbox

DEFAULT_AGENT = "default"
"""Answers where neither the run nor its thread names an agent: the default model, memory as by default."""

# Somebody waits, and both answer without asking anybody else.
_ASKED_FOR_S = 2.0


async def agent_or_default(records: Records, name: str, clock: Clock) -> Agent | None:
    """The newest version of an agent; `default` is made on first use, unless its tenant put one."""
    agent = await records.agent(name)
    if agent is None and name == DEFAULT_AGENT:
        agent = await records.lock_agent(name)
        if agent is None:
            version = await records.newest_version(name) + 1
            agent = Agent(AgentSpec(DEFAULT_AGENT), version, clock.now())
            await records.add_agent(agent)
    return agent


async def _require_others(records: Records, spec: AgentSpec) -> None:
    there = {DEFAULT_AGENT, *await records.purposes([*spec.handoffs, *spec.sub_agents])}
    check = Violations()
    for field, names in (("handoffs", spec.handoffs), ("sub_agents", spec.sub_agents)):
        for place, name in enumerate(names):
            check.require(name in there, f"agent.{field}[{place}]", "must name an agent that is there")
    check.done()


class Agents:
    """The agents of all tenants."""

    def __init__(self, store: Store, toolbox: Toolbox, model: Model, memory: Memory, clock: Clock) -> None:
        self._store = store
        self._toolbox = toolbox
        self._model = model
        self._memory = memory
        self._clock = clock

    async def put(self, tenant: str, spec: AgentSpec, expected_version: int, key: Once[Agent]) -> Agent | bytes:
        """Store a new version; the same content keeps its version.

        Raises Aborted / VERSION_MISMATCH when ``expected_version`` (0: any) is
        not the current one, InvalidArgument for a tool that nobody offers, and
        for a model, a space or an agent to bring in that is not there,
        Unavailable when the service that knows cannot be asked.
        """
        await self._require_parts(tenant, spec)
        async with self._store.tenant(tenant) as records:

            async def work() -> Agent:
                await _require_others(records, spec)
                current = await records.lock_agent(spec.name)
                version = current.version if current is not None else 0
                if expected_version and expected_version != version:
                    raise Aborted(
                        "VERSION_MISMATCH",
                        f"agent '{spec.name}' is at version {version}",
                        {"current_version": str(version)},
                    )
                if current is not None and current.spec == spec:
                    return current
                # One that was taken out goes on counting: runs keep versions of before.
                newest = version or await records.newest_version(spec.name)
                agent = Agent(spec, newest + 1, self._clock.now())
                await records.add_agent(agent)
                return agent

            return await once(records, key, work)

    async def _require_parts(self, tenant: str, spec: AgentSpec) -> None:
        """What the agent names of others: its model, tools and space."""
        known = await self._toolbox.find(tenant, [tool.name for tool in spec.tools if not tool.client_side])
        check = Violations()
        # As its runs will ask for them.
        with acting_as(identity.of_run(tenant, "")):
            if spec.model:
                can_answer = await self._model.can_answer(spec.model, _ASKED_FOR_S)
                rule = "must be an alias or provider/model that the inference service can ask for an answer"
                check.require(can_answer, "agent.model", rule)
            if spec.memory.space != DEFAULT_SPACE:
                has_space = await self._memory.has_space(spec.memory.space, _ASKED_FOR_S)
                rule = f"must be a space that is there; only '{DEFAULT_SPACE}' is made on first use"
                check.require(has_space, "agent.memory.space", rule)
        for place, tool in enumerate(spec.tools):
            is_there = tool.client_side or tool.name in known
            check.require(is_there, f"agent.tools[{place}].name", "must name a tool that somebody offers")
        check.done()

    async def get(self, tenant: str, name: str, version: int) -> Agent:
        """A version, 0 for the newest. Raises NotFound."""
        async with self._store.tenant(tenant) as records:
            agent = await (records.agent(name, version) if version else agent_or_default(records, name, self._clock))
        if agent is None:
            message = f"version {version} of agent '{name}' was not found" if version else None
            raise NotFound("agent", name, message=message)
        return agent

    async def delete(self, tenant: str, name: str, key: Once[None]) -> None:
        """Take an agent out; runs keep the version that they have. Raises NotFound.

        `default` is there without being put: out, it is again what it is then.
        """
        async with self._store.tenant(tenant) as records:

            async def work() -> None:
                if await records.lock_agent(name) is None and name != DEFAULT_AGENT:
                    raise NotFound("agent", name)
                await records.remove_agent(name)

            await once(records, key, work)

    async def page(self, tenant: str, after: str, size: int) -> tuple[list[Agent], bool]:
        """The newest versions by name, and whether there are more."""
        async with self._store.tenant(tenant) as records:
            found = await records.agents(after, size + 1)
        return found[:size], len(found) > size
