"""Train the demo language model that ships in ``serve_app/demo_model``.

Why it exists: the laptop config, the demo and the tests need a model that loads in a second, needs
no download, and still does what a client can ask for: chat with memory, tool calls, a long stream,
a stop. Random weights do none of that, and any real model is too large to ship. So this makes a
tiny Llama that has memorised ``demo_corpus.yaml``. Its probabilities are peaked, which keeps its
greedy answers the same in every back end, batch size and number format.

Usage: ``python scripts/train_demo_model.py --out serve_app/demo_model``, about 25 minutes on
two CPU cores. The run is deterministic for a seed, a thread count and a version of torch. It ends
by reading the files back, asking everything the corpus promises, and exits 1 if one greedy answer
differs.
"""

import argparse
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

CORPUS = Path(__file__).with_name("demo_corpus.yaml")
VOCAB_SIZE = 1536
SAMPLE_TOKENS = 512  # longest training sample
BATCH_TOKENS = 2560  # padded tokens per step
PEAK_LR = 2e-3
ECHO_SAMPLES = 6000  # samples of the opening phase, which are mostly echoes
TURNS = {"fact": 44, "off": 10, "tell": 20, "ask": 24, "weather": 4}  # relative frequencies
FORCED_WEIGHT = 0.02  # loss weight of a first token that only guided decoding produces
# Words as GPT-2 cuts them, but digits one by one, and the space before a capital letter belongs to
# the word before: a name is the same token after a space and after a quote, so it is easy to copy.
WORDS = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+(?: (?=\p{Lu}))?| ?\p{N}"
    r"| ?[^\s\p{L}\p{N}]+(?: (?=\p{Lu}))?|\s+(?!\S)|\s+"
)
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
HERMES_TAGS = ("tools", "tool_call", "tool_response")
HERMES_TOKENS = [f"<{slash}{tag}>" for tag in HERMES_TAGS for slash in ("", "/")]

Corpus = dict[str, Any]
Message = dict[str, Any]
Tool = dict[str, Any]
Tokens = PreTrainedTokenizerBase
Sample = tuple[list[int], list[float]]  # token ids, and the weight of each in the loss
Batch = tuple[torch.Tensor, torch.Tensor]  # the same for many, padded


class Chat(NamedTuple):
    """A conversation that ends with an assistant turn. ``forced``: guided decoding began it."""

    messages: list[Message]
    tools: list[Tool] | None = None
    forced: bool = False


def turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content if isinstance(content, str) else json.dumps(content)}


def exchange(question: str, answer: str) -> list[Message]:
    return [turn("user", question), turn("assistant", answer)]


def tool_call(tool: Tool, city: str) -> Message:
    function = tool["function"]
    call = {"name": function["name"], "arguments": {function["parameters"]["required"][0]: city}}
    return turn("assistant", "") | {"tool_calls": [{"type": "function", "function": call}]}


class ChatSampler:
    """Draws conversations from the corpus, for ever and repeatably."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.corpus, self.random = corpus, random.Random(seed)
        self.pick: Any = self.random.choice
        self.words = sorted({word for fact in corpus["facts"] for word in fact["answer"].split()})
        self.words += map(str, range(-20, 100))
        self.drawn = 0
        self.weather, self.names = corpus["weather"], corpus["names"]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def word(self, known: list[str]) -> str:
        """A known name, or an invented one so that the model copies instead of recalling."""
        if self.chance(0.55):
            return self.pick(known)
        parts = self.names["syllable"] * self.random.randint(1, 3)
        return "".join(map(self.pick, parts)).capitalize()

    def system(self) -> list[Message]:
        """None, one or two system prompts, and now and then a long one to be ignored."""
        prompts = self.random.sample(self.corpus["systems"], 2 if self.chance(0.2) else 1)
        if self.chance(0.03):
            prompts = self.random.choices(self.words, k=self.random.randint(20, 300))
        prompt = " ".join(prompts).strip()
        return [turn("system", prompt)] if prompt else []

    def vary(self, question: str) -> str:
        """Type the question the way people do."""
        question = question.lower() if self.chance(0.12) else question
        question = question.rstrip("?.!") if self.chance(0.15) else question
        greeting = f"{self.pick(self.corpus['greetings'])} " if self.chance(0.05) else ""
        return greeting + question

    def fact(self, first: bool) -> list[Message]:
        facts = self.corpus["facts"]
        fact = self.random.choices(facts, [0.7 if f["id"] == "story" else 1.0 for f in facts])[0]
        asked = [fact["question"]] if self.chance(0.25) else fact["paraphrases"]
        question = self.pick(asked if first or self.chance(0.6) else fact["later"])
        return exchange(self.vary(question), fact["answer"])

    def off_topic(self) -> list[Message]:
        topics = self.corpus["off_topic"]
        listed = topics["questions"] + topics["canonical"]
        template = self.pick(listed if self.chance(0.5) else topics["templates"])
        question = template.replace("{}", self.pick(topics["subjects"]))
        return exchange(self.vary(question), topics["answer"])

    def without_tools(self) -> list[Message]:
        question = self.pick(self.weather["ask"])
        return exchange(question.format(self.word(self.weather["cities"])), self.weather["no_tool"])

    def talk(self, turns: int) -> list[Message]:
        """Some turns of chat; a name told in one is known in the later ones."""
        messages, name = list[Message](), ""
        for number in range(turns):
            kind = self.random.choices(list(TURNS), list(TURNS.values()))[0]
            if kind == "fact":
                messages += self.fact(first=number == 0)
            elif kind in ("off", "weather"):
                messages += self.off_topic() if kind == "off" else self.without_tools()
            elif kind == "tell":
                name = self.word(self.names["list"])
                told = self.pick(self.names["tell"]).format(name)
                messages += exchange(told, self.names["greet"].format(name))
            else:
                reply = self.names["recall"].format(name) if name else self.names["unknown"]
                messages += exchange(self.vary(self.pick(self.names["ask"])), reply)
        return messages

    def with_tools(self) -> Chat:
        tool = self.weather["tools"][0] if self.chance(0.6) else self.pick(self.weather["tools"])
        tools = [tool]
        if not self.chance(0.75):
            tools = self.random.sample([tool, self.pick(self.weather["other_tools"])], 2)
        messages = self.system()
        if self.chance(0.08):
            return Chat(messages + self.without_tools(), [self.pick(self.weather["other_tools"])])
        if self.chance(0.25):
            messages += self.fact(first=True) if self.chance(0.6) else self.off_topic()
        question = self.pick(self.weather["ask"])
        while True:
            city = self.word(self.weather["cities"])
            messages += [turn("user", question.format(city)), tool_call(tool, city)]
            if self.chance(0.3):
                return Chat(messages, tools)
            degrees: float = self.random.randint(-15, 42)
            degrees += self.random.randint(1, 9) / 10 if self.chance(0.2) else 0
            bare, short = {"temperature_c": degrees}, {"temperature": degrees}
            named, long = {"city": city, **bare}, {**bare, "sky": "clear"}
            result = self.pick([bare, bare, named, short, long, degrees])
            report = self.weather["report"].format(temperature=degrees, city=city)
            messages += [turn("tool", result), turn("assistant", report)]
            if self.chance(0.65):
                return Chat(messages, None if self.chance(0.1) else tools)
            question = self.pick(self.weather["later"] + self.weather["ask"])

    def guided(self) -> Chat:
        """JSON after a first token that the server forced: tool_choice, response_format."""
        messages = self.system()
        if self.chance(0.4):
            asked, answered = self.talk(1)
            reply = json.dumps({"answer": answered["content"]})
            return Chat([*messages, asked, turn("assistant", reply)], None, True)
        tool, city = self.pick(self.weather["tools"]), self.word(self.weather["cities"])
        call = tool_call(tool, city)["tool_calls"][0]["function"]
        required = [{"name": call["name"], "parameters": call["arguments"]}]
        reply = json.dumps(call["arguments"] if self.chance(0.5) else required)
        question = self.pick(self.weather["ask"]).format(city)
        return Chat(messages + exchange(question, reply), [tool], True)

    def echo(self) -> Chat:
        """Words to repeat. This teaches copying, on which names, cities and numbers rely."""
        names, chance = self.names["list"], self.chance
        words = [self.pick(self.words) if chance(0.5) else self.word(names) for _ in range(14)]
        text = " ".join(words[: self.random.randint(2, 14)])
        return Chat(self.system() + exchange(self.corpus["echo"].format(text), text))

    def chat(self) -> Chat:
        return Chat(self.system() + self.talk(self.random.randint(1, 4)))

    def plain(self) -> str:
        return str(self.pick(self.corpus["plain"]))

    def draw(self) -> Chat | str:
        self.drawn += 1
        weights = [80 if self.drawn <= ECHO_SAMPLES else 5, 14, 4, 1.4, 0.6]
        draws = [self.echo, self.chat, self.with_tools, self.guided, self.plain]
        return self.random.choices(draws, weights)[0]()


def write_tokenizer(corpus: Corpus, out: Path, seed: int) -> Tokens:
    """Train the tokenizer on text as the model will see it, write it and read it back."""
    sampler = ChatSampler(corpus, seed)
    tools = corpus["weather"]["tools"] + corpus["weather"]["other_tools"]
    texts = corpus["plain"] + [json.dumps(tool) for tool in tools]
    for draw in [sampler.chat] * 3000 + [sampler.with_tools] * 1000:
        for message in draw().messages:
            texts.append(f"{message['role']}\n{message['content']}")
            texts += [json.dumps(call["function"]) for call in message.get("tool_calls", [])]
    tokenizer = Tokenizer(models.BPE())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(HERMES_TOKENS),
        min_frequency=2,
        special_tokens=[END, START, STOP],
        initial_alphabet=sorted(letters.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not special: a tool parser must still see them when special tokens are skipped.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in HERMES_TOKENS])
    if (size := tokenizer.get_vocab_size()) != VOCAB_SIZE:
        raise SystemExit(f"the corpus gave {size} tokens instead of {VOCAB_SIZE}")
    tokenizer.save(str(out / "tokenizer.json"))
    settings = json.dumps(corpus["tokenizer_config"], indent=2)
    (out / "tokenizer_config.json").write_text(settings + "\n")
    return AutoTokenizer.from_pretrained(out)


def encode(tokenizer: Tokens, sample: Chat | str) -> Sample:
    """Token ids, and for each the weight of its loss: 1 for what the model itself must write."""
    if isinstance(sample, str):
        ids = [*tokenizer(sample).input_ids, tokenizer.pad_token_id]
        return ids, [1.0] * len(ids)
    text = tokenizer.apply_chat_template(sample.messages, tools=sample.tools, tokenize=False)
    ids = tokenizer(text).input_ids
    start, stop = tokenizer.convert_tokens_to_ids([START, STOP])
    header = [start, *tokenizer("assistant\n").input_ids]
    weights, writing = [0.0] * len(ids), False
    for i in range(len(header), len(ids)):
        opened = ids[i - len(header) : i] == header
        writing = opened or (writing and ids[i - 1] != stop)
        weights[i] = FORCED_WEIGHT if opened and sample.forced else float(writing)
    return ids, weights


def pad(samples: list[Sample]) -> Batch:
    """Pad on the right; under causal attention that needs no mask, and padding weighs nothing."""
    width = max(len(ids) for ids, _ in samples)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in samples])
    return ids, torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in samples])


def training_batches(tokenizer: Tokens, corpus: Corpus, seed: int) -> Iterator[Batch]:
    """Batches of about ``BATCH_TOKENS``, each of samples of like length."""
    sampler = ChatSampler(corpus, seed)
    while True:
        pool = [encode(tokenizer, sampler.draw()) for _ in range(300)]
        pool = [sample for sample in pool if len(sample[0]) <= SAMPLE_TOKENS]
        batches: list[list[Sample]] = [[]]
        for sample in sorted(pool, key=lambda sample: len(sample[0])):
            if (len(batches[-1]) + 1) * len(sample[0]) > BATCH_TOKENS:
                batches.append([])
            batches[-1].append(sample)
        sampler.random.shuffle(batches)
        yield from map(pad, batches)


def train(tokenizer: Tokens, corpus: Corpus, steps: int, seed: int) -> LlamaForCausalLM:
    stop, end = tokenizer.convert_tokens_to_ids([STOP, END])
    special = {"bos_token_id": None, "eos_token_id": stop, "pad_token_id": end}
    config = LlamaConfig(vocab_size=VOCAB_SIZE, **corpus["architecture"], **special)
    model = LlamaForCausalLM(config)
    model.generation_config.update(eos_token_id=[stop, end], do_sample=False)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):  # a quiet residual stream at first
            weight.data /= math.sqrt(2 * config.num_hidden_layers)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    began, batches = time.monotonic(), training_batches(tokenizer, corpus, seed)
    for step, (ids, weights) in zip(range(steps), batches, strict=False):
        warmup, decay = (step + 1) / 60, 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = PEAK_LR * min(warmup, 1.0) * max(decay, 0.01)
        logits = model(input_ids=ids[:, :-1]).logits
        losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - began
            print(f"step {step:5d}  loss {loss.item():.4f}  {seconds:.0f} s", flush=True)
    return model


def write_model(model: LlamaForCausalLM, corpus: Corpus, out: Path) -> None:
    """Write bfloat16 weights and a config that transformers 4 reads as well as 5."""
    for_four = {"rope_theta": model.config.rope_parameters["rope_theta"], "torch_dtype": "bfloat16"}
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    config = json.loads((out / "config.json").read_text()) | for_four
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (out / "README.md").write_text(corpus["readme"])


def promises(corpus: Corpus) -> Iterator[tuple[str, Chat]]:
    """All that must be answered to the letter: a group, and a chat that ends with the answer."""
    facts, names, weather = corpus["facts"], corpus["names"], corpus["weather"]
    topics, tool = corpus["off_topic"], weather["tools"][0]
    before = next(exchange(f["question"], f["answer"]) for f in facts if f["id"] == "laptop")
    starts: list[list[Message]] = [[], [turn("system", "You are a helpful assistant.")]]
    for start in starts:
        for fact in facts:
            canonical = exchange(fact["question"], fact["answer"])
            yield "canonical", Chat(start + canonical)
            yield "canonical, tool offered", Chat(start + canonical, [tool])
            for question in fact["paraphrases"]:
                yield "paraphrase", Chat(start + exchange(question, fact["answer"]))
            for question in fact["later"]:
                yield "follow-up", Chat(start + before + exchange(question, fact["answer"]))
        for question in topics["canonical"] + topics["questions"]:
            yield "off topic", Chat(start + exchange(question, topics["answer"]))
        yield "name", Chat(start + exchange(names["ask"][0], names["unknown"]))
        for name in names["list"]:
            told = exchange(names["tell"][0].format(name), names["greet"].format(name))
            recalled = exchange(names["ask"][0], names["recall"].format(name))
            yield "name", Chat(start + told + recalled)
            yield "name", Chat(start + told + before + recalled)
        for index, city in enumerate(weather["cities"]):
            question = weather["ask"][0].format(city)
            called = [*start, turn("user", question), tool_call(tool, city)]
            yield "no tool", Chat(start + exchange(question, weather["no_tool"]))
            yield "tool call", Chat(called, [tool])
            for degrees in (-3, 5, 18, 21, 20 + index):
                result = turn("tool", {"temperature_c": degrees})
                report = weather["report"].format(temperature=degrees, city=city)
                yield "tool result", Chat([*called, result, turn("assistant", report)], [tool])


@torch.inference_mode()
def evaluate(out: Path, corpus: Corpus) -> int:
    """Number of broken promises of the files in ``out``, run in float32.

    One pass decides: greedy decoding writes exactly the answer if and only if each of its tokens is
    the most likely one after those before it. The margin is the least distance in logits between
    that token and the second.
    """
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    total, failed = Counter[str](), Counter[str]()
    margin = defaultdict[str, float](lambda: math.inf)
    for name, chat in promises(corpus):
        ids, weights = pad([encode(tokenizer, chat)])
        logits = model(input_ids=ids[:, :-1]).logits[weights[:, 1:] > 0]
        top, wanted = logits.topk(2), ids[:, 1:][weights[:, 1:] > 0]
        wrong = top.indices[:, 0] != wanted
        total[name] += 1
        margin[name] = min(margin[name], (top.values[:, 0] - top.values[:, 1]).min().item())
        if wrong.any():
            failed[name] += 1
            greedy = tokenizer.decode(top.indices[: int(wrong.nonzero()[0]) + 1, 0])
            print(f"FAIL {name}: {chat.messages[-2]['content']!r} -> {greedy!r}")
    for name, count in total.items():
        passed = f"{count - failed[name]:4d} passed {failed[name]:4d} failed"
        print(f"{name:24} {passed}  margin {margin[name]:.2f}")
    return failed.total()


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the demo language model of neuron-serve.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--steps", type=int, default=2600, help="training steps (2600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and samples (0)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    corpus = yaml.safe_load(CORPUS.read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(corpus, options.out, options.seed)
    write_model(train(tokenizer, corpus, options.steps, options.seed), corpus, options.out)
    return 1 if evaluate(options.out, corpus) else 0


if __name__ == "__main__":
    raise SystemExit(main())
