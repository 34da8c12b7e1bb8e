"""A real pretrained model with a choice to make: SmolLM2-135M, on three families of questions.

    python -m experiments.smollm2 --cold-start FILE.jsonl    samples for sft.py --data
    python -m experiments.smollm2 --screen MODEL             designs by hand, on each family
    python -m experiments.smollm2 --chosen MODEL             how likely each design is, by family
    python -m experiments.smollm2 --compare A:metaagent B:coder    folders of eval.py and modes
    python train.py --plugin experiments/smollm2.py --tasks capitals ...

The whole chain of commands is in experiments/README.md. Every question offers the Python tool. What
a family needs differs, though the words are the same: a fact that only the weights hold ("What is
the capital of Peru?"), the fact and then the tool ("How many letters has the capital of Peru?"), or
the tool alone, where naming the capital does harm ('... has the phrase "the capital of Peru"?').
A quarter of the countries are in no sample of the cold start and in no training question: what the
model knows of them it knows from its pretraining.

The scripted teacher draws every design for every question, some wrong ones more often, so it does
not tell which one fits. Its agents are right about what they are there for. Its coder always
computes: asked for a fact, or for something that needs one, it counts the letters of the country's
name.

Test: `pytest tests/test_smollm2.py`. Read next: LOG.md.
"""

import asyncio
import json
import math
import pathlib
import random
import re
import statistics
from dataclasses import dataclass

import torch

import designer
from data_types import Budget, Question
from engines.hf import HFEngine
from executor import Runtime, tool_messages
from lib import cli
from lib.answers import final_answer
from lib.cli import log
from lib.errors import UserError
from lib.files import atomic_write, read_jsonl
from lib.metrics import mean
from lib.plugins import install
from lib.split import held_out
from policy import CompletionLogprobs, Policy, collate
from rollout import Rollout
from sandbox import Sandbox
from sft import encode
from tiny.teacher import messages_to

CAPITALS = dict(
    line.split(": ")
    for line in """
Afghanistan: Kabul|Albania: Tirana|Algeria: Algiers|Angola: Luanda|Argentina: Buenos Aires
Armenia: Yerevan|Australia: Canberra|Austria: Vienna|Azerbaijan: Baku|Bahrain: Manama
Bangladesh: Dhaka|Barbados: Bridgetown|Belarus: Minsk|Belgium: Brussels|Belize: Belmopan
Bhutan: Thimphu|Botswana: Gaborone|Bulgaria: Sofia|Burkina Faso: Ouagadougou|Cambodia: Phnom Penh
Canada: Ottawa|Chile: Santiago|China: Beijing|Colombia: Bogota|Croatia: Zagreb|Cuba: Havana
Cyprus: Nicosia|Denmark: Copenhagen|Ecuador: Quito|Egypt: Cairo|Eritrea: Asmara|Estonia: Tallinn
Ethiopia: Addis Ababa|Fiji: Suva|Finland: Helsinki|France: Paris|Gabon: Libreville|Georgia: Tbilisi
Germany: Berlin|Ghana: Accra|Greece: Athens|Guinea: Conakry|Guyana: Georgetown|Hungary: Budapest
Iceland: Reykjavik|India: New Delhi|Indonesia: Jakarta|Iran: Tehran|Iraq: Baghdad|Ireland: Dublin
Italy: Rome|Jamaica: Kingston|Japan: Tokyo|Jordan: Amman|Kazakhstan: Astana|Kenya: Nairobi
Kyrgyzstan: Bishkek|Laos: Vientiane|Latvia: Riga|Lebanon: Beirut|Liberia: Monrovia|Libya: Tripoli
Lithuania: Vilnius|Madagascar: Antananarivo|Malawi: Lilongwe|Malaysia: Kuala Lumpur|Maldives: Male
Mali: Bamako|Malta: Valletta|Moldova: Chisinau|Mongolia: Ulaanbaatar|Morocco: Rabat
Mozambique: Maputo|Namibia: Windhoek|Nepal: Kathmandu|Netherlands: Amsterdam|New Zealand: Wellington
Nicaragua: Managua|Niger: Niamey|Nigeria: Abuja|North Korea: Pyongyang|Norway: Oslo|Oman: Muscat
Pakistan: Islamabad|Paraguay: Asuncion|Peru: Lima|Philippines: Manila|Poland: Warsaw
Portugal: Lisbon|Qatar: Doha|Romania: Bucharest|Russia: Moscow|Rwanda: Kigali|Saudi Arabia: Riyadh
Senegal: Dakar|Serbia: Belgrade|Sierra Leone: Freetown|Slovakia: Bratislava|Slovenia: Ljubljana
Somalia: Mogadishu|South Korea: Seoul|Spain: Madrid|Sudan: Khartoum|Suriname: Paramaribo
Sweden: Stockholm|Switzerland: Bern|Syria: Damascus|Taiwan: Taipei|Tajikistan: Dushanbe
Thailand: Bangkok|Tunisia: Tunis|Turkey: Ankara|Turkmenistan: Ashgabat|Uganda: Kampala
Ukraine: Kyiv|United Kingdom: London|Uruguay: Montevideo|Uzbekistan: Tashkent|Venezuela: Caracas
Vietnam: Hanoi|Yemen: Sana|Zambia: Lusaka|Zimbabwe: Harare
""".strip().replace("\n", "|").split("|")
)  # fmt: skip
CANDIDATES = ("capital", "letters", "phrase", "sum", "backwards")
FAMILIES = ("capital", "letters", "phrase")  # of these, what the screening kept

SOLVER = 'Agent("solver", "Solve the question.")'
CODER = 'Agent("coder", "Solve it with Python.", tools=["python"])'
NAMER = 'Agent("namer", "Put names in place of descriptions.")'
DESIGNS = {
    "single": f"submit({SOLVER}(question))",
    "coder": f"submit({CODER}(question))",
    "vote": f"submit(vote([{SOLVER}] * 3, question))",
    "coders": f"submit(vote([{CODER}] * 3, question))",
    "chain": f"namer = {NAMER}\ncoder = {CODER}\nsubmit(coder(namer(question)))",
    "chain, then vote": f"namer = {NAMER}\nx = namer(question)\nsubmit(vote([{CODER}] * 3, x))",
    "chain to the solver": f"namer = {NAMER}\nsolver = {SOLVER}\nsubmit(solver(namer(question)))",
}
# Designs that a family has more often in the cold start, LEANING times: wrong ones, so that the
# designer looks at the question, and has to learn what to make of it. With 2 it hardly looks.
LEANS_TO = {
    "capital": ("coder", "coders"),
    "letters": ("single", "chain to the solver"),
    "phrase": ("chain", "chain, then vote"),
    "sum": ("single", "vote"),
    "backwards": ("vote", "chain to the solver"),
}
LEANING = 4
SUM = re.compile(r"\d[\d +-]*\d")
REPLY_TOKENS = 40
SOLVER_SHARE = 0.3  # of the executor's samples from a question; the others are the coder's
SOLVER_SHARE_OF_FACTS = 0.7  # the same where it is asked for a fact
COPIED_RIGHT = 0.9  # how often the coder copies a sum without a mistake
NAMER_COPIED_RIGHT = 0.5  # the same of the namer, who is there for names


@dataclass(frozen=True)
class Config:
    cold_start: str | None = None  # file for the samples of the scripted teacher
    samples: int = 1600  # number of these samples
    screen: str | None = None  # model whose hand-written designs are measured on each family
    chosen: str | None = None  # model that is asked how likely it writes each hand-written design
    limit: int = 40  # held-out questions of each family for --screen and --chosen
    compare: tuple[str, ...] = ()  # two of eval.py's folders and modes, as DIR:MODE
    seed: int = 0  # random seed


# --------------------------------------------------------------------------------------- questions


def draw(rng: random.Random, family: str, split: str) -> tuple[str, str]:
    """(prompt, answer) of a random question on this side of the split."""
    if family == "sum":
        return draw_sum(rng, split)
    country = rng.choice(list(CAPITALS))
    while held_out(country) != (split == "heldout"):
        country = rng.choice(list(CAPITALS))
    capital, phrase = CAPITALS[country], f"the capital of {country}"
    if family == "capital":
        return f"What is the capital of {country}?", capital
    if family == "letters":
        return f"How many letters has the capital of {country}?", num_letters(capital)
    if family == "phrase":
        return f'How many letters has the phrase "{phrase}"?', num_letters(phrase)
    return f"Spell {country} backwards.", country[::-1]


def num_letters(text: str) -> str:
    return str(len(text.replace(" ", "")))


def draw_sum(rng: random.Random, split: str) -> tuple[str, str]:
    while True:
        a, b, c = (rng.randint(11, 999) for _ in range(3))
        first, second = rng.choice("+-"), rng.choice("+-")
        expression = f"{a} {first} {b} {second} {c}"
        prompt = f"How much is {expression}?"
        if held_out(prompt) == (split == "heldout"):
            return prompt, str(eval(expression))  # our own numbers


def questions_of(families, split: str, seed: int, size: int) -> list[Question]:
    """Distinct questions, the families in turn; fewer than `size` where a family has no more."""
    rng = random.Random(f"capitals {split} {seed}")
    questions = {}
    for attempt in range(50 * size):
        if len(questions) == size:
            break
        family = families[attempt % len(families)]
        prompt, answer = draw(rng, family, split)
        name = f"{family}-{len(questions)}"
        questions.setdefault(prompt, Question(name, prompt, answer, family=family))
    return list(questions.values())


def capitals(split, seed, size):
    """The families that the screening kept."""
    return questions_of(FAMILIES, split, seed, size)


TASKS = {"capitals": capitals}


def reward(question, answer):
    """1 for the very answer: a checker of formulas takes Lima for the product of its letters."""
    said = final_answer(answer) or ""
    return float(said.strip().lower() == question.answer.lower())


def designer_messages(question):
    """The blocks by name: two CPU cores read the whole documentation too slowly."""
    content = f"{designer.ROLE} Tools of the agents: python. Blocks: Agent, vote, submit."
    return [
        {"role": "system", "content": content},
        {"role": "user", "content": question.prompt},
    ]


# -------------------------------------------------------------------------------------- cold start


def with_names(rng: random.Random, prompt: str) -> str:
    """What the namer says to a question: "How many letters has Lima?"."""
    if sum_of := SUM.search(prompt):
        return prompt.replace(sum_of[0], copied(rng, sum_of[0], NAMER_COPIED_RIGHT))
    names = "|".join(sorted(CAPITALS, key=len, reverse=True))  # Nigeria before Niger
    return re.sub(f"the capital of ({names})", lambda match: CAPITALS[match[1]], prompt)


def copied(rng: random.Random, expression: str, right: float) -> str:
    """The expression as it is, with probability `right`; else with one digit drawn again."""
    if rng.random() < right:
        return expression
    places = [i for i, character in enumerate(expression) if character.isdigit()]
    place = rng.choice(places)
    return f"{expression[:place]}{rng.randint(1, 9)}{expression[place + 1 :]}"


def computed(rng: random.Random, text: str) -> str:
    """The expression that the coder's program prints, for a question or what the namer says."""
    if sum_of := SUM.search(text):
        return copied(rng, sum_of[0], COPIED_RIGHT)
    quoted = re.search('"(.*)"', text)
    name = quoted or re.search(
        r"(?:has|Spell|is)(?: the capital of)? (.*?)(?: backwards)?[.?]$", text
    )
    if "backwards" in text:
        return f'"{name[1]}"[::-1]'
    return f'len("{name[1]}".replace(" ", ""))'


def solved(rng: random.Random, question: Question) -> str:
    """The solver's reply, without the tool. Facts in the words of pretraining: so it knows them."""
    answer = f"\\boxed{{{guess(rng, question)}}}"
    if question.family == "capital":
        return question.prompt.replace("What is the", "The").replace("?", f" is {answer}.")
    return answer


def guess(rng: random.Random, question: Question) -> str:
    """The solver's answer: right about facts alone."""
    if question.family == "capital":
        return question.answer
    if question.family == "letters":
        return str(rng.randint(4, 10))
    if question.family == "phrase":
        return str(rng.randint(14, 24))
    if question.family == "sum":
        return str(int(question.answer) + rng.randint(-300, 300))
    letters = list(question.answer)
    i, j = rng.randrange(len(letters)), rng.randrange(len(letters))
    letters[i], letters[j] = letters[j], letters[i]
    return "".join(letters)


def cold_start(count: int, seed: int) -> list[dict]:
    """Samples of both roles: for each question two designs at random, and what agents say to it."""
    rng = random.Random(f"cold start {seed}")
    rows = []

    def add(role: str, messages: list[dict], completion: str) -> None:
        rows.append({"role": role, "messages": messages, "completion": completion})

    while len(rows) < count:
        family = rng.choice(CANDIDATES)
        prompt, answer = draw(rng, family, "train")
        question = Question("", prompt, answer, family=family)
        # Two: a designer that has seen few designs prefers some for every question.
        weights = [LEANING if name in LEANS_TO[family] else 1 for name in DESIGNS]
        for design in rng.choices(list(DESIGNS.values()), weights, k=2):
            add("designer", designer_messages(question), f"```python\n{design}\n```")

        text = prompt
        if rng.random() < 0.4:
            text = with_names(rng, prompt)
            add("executor", messages_to("Put names in place of descriptions.", prompt), text)
        if rng.random() < (SOLVER_SHARE_OF_FACTS if family == "capital" else SOLVER_SHARE):
            add("executor", messages_to("Solve the question.", prompt), solved(rng, question))
        else:
            messages = messages_to("Solve it with Python.", text, ("python",))
            expression = computed(rng, text)
            reply = f"```python\nprint({expression})\n```"
            add("executor", messages, reply)
            output = str(eval(expression, {}))  # the teacher's own
            messages = messages + tool_messages(reply, output, is_last=False)
            add("executor", messages, f"\\boxed{{{output}}}")
    return rows[:count]


# -------------------------------------------------------------------------------------- screening


async def screen(model: str, limit: int, seed: int) -> None:
    """Accuracy of every hand-written design on every candidate family, without any training."""
    install({"reward": reward}, __file__)
    policy = Policy(cli.model_path(model))
    engine = HFEngine(policy)
    budget = Budget(calls=8, reply_tokens=REPLY_TOKENS)
    async with Sandbox() as sandbox:
        for temperature in (0.0, 1.0):
            rollout = Rollout(Runtime(engine, policy, sandbox, budget, temperature))
            log.info(f"| temperature {temperature:.0f} | {' | '.join(DESIGNS)} |")
            for family in CANDIDATES:
                questions = questions_of((family,), "heldout", seed, limit)
                scores = []
                for design in DESIGNS.values():
                    trees = await rollout.rollout(questions, 1, 1, (seed, "screen"), design)
                    scores.append(mean(tree.executions[0][0].reward for tree in trees))
                log.info(f"| {family} | {' | '.join(f'{score:.2f}' for score in scores)} |")


def chosen(model: str, limit: int, seed: int) -> None:
    """How likely the designer is to write each hand-written design, by family."""
    policy = Policy(cli.model_path(model))
    log.info(f"| chosen | {' | '.join(DESIGNS)} |")
    for family in FAMILIES:
        questions = questions_of((family,), "heldout", seed, limit)
        likely = [design_probabilities(policy, question) for question in questions]
        means = [mean(of_design) for of_design in zip(*likely)]
        log.info(f"| {family} | {' | '.join(f'{probability:.2f}' for probability in means)} |")


@torch.no_grad()
def design_probabilities(policy: Policy, question: Question) -> list[float]:
    """Of each hand-written design, to the letter."""
    rows = []
    for design in DESIGNS.values():
        rows.append(("designer", designer_messages(question), f"```python\n{design}\n```"))
    samples = encode(policy, rows, policy.max_length)
    logprobs_K, _ = CompletionLogprobs(policy)(collate(samples, policy.pad_id))
    of_designs = logprobs_K.split([len(sample.completion_ids) for sample in samples])
    return [logprobs.double().sum().exp().item() for logprobs in of_designs]


# -------------------------------------------------------------------------------------- comparison


def scores_of(where: str) -> dict[str, float]:
    """Name of a question -> its score, of a folder of eval.py and a mode: "DIR:MODE"."""
    folder, _, mode = where.rpartition(":")
    path = pathlib.Path(folder) / "answers.jsonl"
    if not path.is_file():
        raise UserError(
            f"--compare {where}: no {path}; it has to be DIR:MODE, of eval.py --out DIR"
        )
    rows = [row for row in read_jsonl(path) if row["mode"] == mode]
    return {row["question"]: mean(row["scores"]) for row in rows}


def compare(one: str, other: str) -> str:
    """Accuracies by family, and their mean difference, paired by question, with its interval."""
    scores, others = scores_of(one), scores_of(other)
    shared = sorted(set(scores) & set(others))
    if len(shared) < 2:
        raise UserError(f"--compare {one} {other}: fewer than two questions in common")

    def line(what: str, names: list[str]) -> str:
        means = [mean(of_model[name] for name in names) for of_model in (scores, others)]
        return f"{what}: {means[0]:.2f} and {means[1]:.2f}, {len(names)} questions"

    lines = []
    for family in FAMILIES:
        names = [name for name in shared if name.startswith(f"{family}-")]
        lines += [line(family, names)] if names else []
    differences = [scores[name] - others[name] for name in shared]
    half = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    middle = statistics.fmean(differences)
    interval = f"{middle:+.2f} ({middle - half:+.2f} to {middle + half:+.2f})"
    return "\n".join([*lines, line("all", shared), f"difference: {interval}"])


def main(argv: list[str]) -> None:
    config = cli.flags(Config, argv, "Questions, cold start and screening for SmolLM2-135M.")
    cli.check_at_least(config, 1, "samples limit")
    if config.cold_start:
        rows = cold_start(config.samples, config.seed)
        path = pathlib.Path(config.cold_start)
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
        log.info(f"{path}: {len(rows)} samples")
    elif config.screen:
        asyncio.run(screen(config.screen, config.limit, config.seed))
    elif config.chosen:
        chosen(config.chosen, config.limit, config.seed)
    elif len(config.compare) == 2:
        log.info(compare(*config.compare))
    else:
        raise UserError("name --cold-start, --screen, --chosen or --compare; --help says more")


if __name__ == "__main__":
    cli.command(main)
