"""The exceptions: whose fault a failure is, the user's, the model's, or the machine's.

Test: `pytest tests/test_executor.py`. Read next: messages.py.
"""


class UserError(ValueError):
    """Bad input of the user: shown as one line, exit code 2."""


class RankError(UserError):
    """What other ranks may not know of: the rank that has it says so."""


class PromptTooLong(ValueError):
    """The prompt leaves no room in the context. Nothing is ever cut off in silence."""


class ProtocolError(ValueError):
    """A script sent something that is not a message, or too many."""


class InfrastructureError(RuntimeError):
    """Neither the model nor its script is to blame: the execution ends as infra_error."""


class EngineError(InfrastructureError):
    """The engine failed."""


class AllRanksStop(EngineError):
    """The engine or the sandbox failed, and all ranks know."""


class SandboxError(InfrastructureError):
    """The sandbox itself failed, not the code in it."""


class PluginError(InfrastructureError):
    """A plug-in's reward failed, or a tool of it that runs in the trainer."""


class OverBudget(Exception):
    """An execution asked for more than its budget."""


class InvalidScript(Exception):
    """A script asked for a tool that the question does not offer."""
