"""Another designer prompt: the blocks' names alone, for models that know them by heart.

python train.py --plugin examples/prompt.py
"""

import mas
from designer import ROLE


def designer_messages(question):
    tools = ", ".join(question.tools) or "none"
    content = f"{ROLE} Tools of the agents: {tools}. Blocks: {', '.join(mas.__all__)}."
    return [
        {"role": "system", "content": content},
        {"role": "user", "content": question.prompt},
    ]
