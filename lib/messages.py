"""Messages of an untrusted script: every field is checked before anything is done with it.

Test: `pytest tests/test_executor.py tests/test_fuzz.py`. Read next: tools.py.
"""

from dataclasses import fields

from data_types import Ask
from lib.errors import ProtocolError

MAX_ASKS = 64  # agents that one message may ask
MAX_TOOLS = 8  # names that an agent may list
MAX_TURNS = 16  # tool calls of an agent


def parse_asks(message: dict) -> list[Ask]:
    """What a message of an untrusted script asks of its agents. Raises ProtocolError."""
    raw_asks = message.get("asks")
    if message.get("op") != "ask" or not isinstance(raw_asks, list):
        raise ProtocolError("a message is an ask or a submit")
    if not 0 < len(raw_asks) <= MAX_ASKS:
        raise ProtocolError(f"a message asks 1 to {MAX_ASKS} agents")
    return [parse_ask(raw) for raw in raw_asks]


def parse_ask(raw) -> Ask:
    """Check one ask of an untrusted script. Raises ProtocolError."""
    types = {field.name: field.type for field in fields(Ask)} | {"tools": list}
    if not isinstance(raw, dict) or set(raw) != set(types):
        raise ProtocolError("an ask has the wrong fields")
    if any(type(raw[name]) is not kind for name, kind in types.items()):
        raise ProtocolError("an ask has a field of the wrong type")
    if len(raw["tools"]) > MAX_TOOLS or not all(isinstance(tool, str) for tool in raw["tools"]):
        raise ProtocolError("tools are a few names")
    if not 0 <= raw["max_turns"] <= MAX_TURNS:
        raise ProtocolError(f"max_turns is 0 to {MAX_TURNS}")
    try:
        "".join((raw["text"], raw["instructions"], raw["name"], *raw["tools"])).encode()
    except UnicodeEncodeError:
        raise ProtocolError("text that is not Unicode") from None
    return Ask(**raw | {"tools": tuple(raw["tools"])})
