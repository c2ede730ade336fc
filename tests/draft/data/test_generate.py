"""Answers: what is sampled, what a resume writes, and what a server is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sglang_dspark.cli import run_command
from sglang_dspark.draft.data.answers import load_tokenizer, prompt_tokens
from sglang_dspark.draft.data.generate import main
from sglang_dspark.draft.data.prompts import Prompt, read_prompts, write_prompts
from sglang_dspark.draft.data.sampler import answer_tokens
from sglang_dspark.draft.data.samples import read_samples, training_samples
from sglang_dspark.draft.data.server import Server
from sglang_dspark.draft.evaluation.sampling import Sampling
from sglang_dspark.draft.model.target import Target
from tests.draft.tiny_target import generate_arguments, make_samples, make_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("generate") / "target")


@pytest.fixture(scope="module")
def target(folder: Path) -> Target:
    return Target.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    """The samples' file of an uninterrupted run."""
    return make_samples(folder, folder.parent / "whole.jsonl").read_bytes()


def answers(target: Target, prompts: list[list[int]], sampling: Sampling, **changes: Any) -> Any:
    given: dict[str, Any] = {"max_tokens": 12, "stops": set(), "sampling": sampling} | changes
    return answer_tokens(target, prompts, generator=torch.Generator().manual_seed(0), **given)


@pytest.mark.law
def test_greedy_answers_are_those_of_plain_forwards(target: Target) -> None:
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16]]
    got = answers(target, prompts, Sampling(temperature=0))
    for prompt, answer in zip(prompts, got, strict=True):
        tokens = list(prompt)
        for token in answer:
            hidden, _ = target.prefill(tokens_BS=torch.tensor([tokens]))
            assert int(target.logits(hidden)[0, -1].argmax()) == token
            tokens.append(token)


@pytest.mark.law
def test_sampled_tokens_follow_the_target(target: Target) -> None:
    prompt, count = [21, 22, 23], 6000
    got = answers(target, [prompt] * count, Sampling(temperature=0.25), max_tokens=1)
    hidden, _ = target.prefill(tokens_BS=torch.tensor([prompt]))
    expected = torch.softmax(target.logits(hidden)[0, -1].double() / 0.25, -1).numpy() * count
    seen = np.bincount([answer[0] for answer in got], minlength=len(expected))
    rare = expected < 8
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (seen, expected)]
    assert chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue > 1e-4


@pytest.mark.example
def test_an_answer_ends_with_its_stop_token_and_others_go_on(target: Target) -> None:
    prompts = [[5, 6, 7], [9], [40, 41]]
    free = answers(target, prompts, Sampling())
    stop = free[0][3]
    cut = answers(target, prompts, Sampling(), stops={stop})
    for before, after in zip(free, cut, strict=True):
        assert after == (before[: before.index(stop) + 1] if stop in before else before)


@pytest.mark.law
def test_every_prompt_is_answered_once_with_its_own_tokens(folder: Path, whole: bytes) -> None:
    samples = training_samples(folder.parent / "whole.jsonl")
    prompts = {prompt.id: prompt for prompt in read_prompts(folder.parent / "prompts.jsonl")}
    tokenizer = load_tokenizer(folder)
    assert [sample.id for sample in samples] == sorted(prompts)
    for sample in samples:
        assert list(sample.prompt) == prompt_tokens(tokenizer, prompts[sample.id], [])
        assert (sample.finish == "stop") == (sample.response[-1] == tokenizer.eos_token_id)
        assert len(sample.response) == 24 or sample.finish == "stop"


@settings(max_examples=6, deadline=None)
@pytest.mark.law
@given(share=st.floats(0, 1))
def test_a_log_cut_at_any_byte_is_completed_to_the_same_bytes(
    folder: Path, whole: bytes, share: float
) -> None:
    path = folder.parent / "cut.jsonl"
    settings_file = "whole.jsonl.settings.json"
    (folder.parent / "cut.jsonl.settings.json").write_bytes(
        (folder.parent / settings_file).read_bytes()
    )
    path.write_bytes(whole[: round(share * len(whole))])
    make_samples(folder, path)
    assert path.read_bytes() == whole


@pytest.mark.example
def test_several_turns_are_answered_in_order(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "turns.jsonl"
    write_prompts(prompts, [Prompt(id="a", turns=("one", "two")), Prompt(id="b", turns=("x",))])
    out = tmp_path / "turns.out.jsonl"
    main([str(prompts), "--target", str(folder), "--out", str(out), "--max-tokens", "6"])
    first, second, other = read_samples(out)
    assert (first.key, second.key, other.key) == (("a", 0), ("a", 1), ("b", 0))
    text = load_tokenizer(folder).decode(list(second.prompt))
    assert text == f"<|user|>one<|assistant|>{first.text}<|eos|><|user|>two<|assistant|>"


class Answering(BaseHTTPRequestHandler):
    """An OpenAI-compatible server: says what it was asked; fails as its server's plan says."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        with server.lock:
            server.asked.append((self.path, body))
            status = server.plan.pop(0) if server.plan else server.then
        if status != 200:
            self.reply(status, {"error": {"message": "busy\nreally"}})
        elif self.path == "/v1/chat/completions":
            said = f"answer to {body['messages'][-1]['content']}"
            message = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            self.reply(200, {"choices": [message]})
        else:
            said = f"continues {body['prompt']}"
            self.reply(200, {"choices": [{"text": said, "finish_reason": "length"}]})

    def reply(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(*plan: int, then: int = 200) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.asked, server.plan, server.then, server.lock = [], list(plan), then, threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting."""
    monkeypatch.setattr("sglang_dspark.draft.data.server.time.sleep", lambda _: None)


def ask(folder: Path, prompts: Path, out: Path, url: str) -> None:
    where = ["--target", str(folder), "--out", str(out), "--url", url, "--model", "m"]
    main([str(prompts), *where, "--max-tokens", "9", "--temperature", "0.7", "--batch", "3"])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    chats = [Prompt(id=f"c{i}", domain="chat", turns=(f"q{i}", f"r{i}")) for i in range(6)]
    others = [Prompt(id="t", text="once upon"), Prompt(id="i", tokens=(7, 8, 9))]
    write_prompts(path, [*chats, *others])
    return path


@pytest.mark.example
def test_a_server_is_asked_in_the_api_it_speaks(folder: Path, mixed: Path, tmp_path: Path) -> None:
    with serving() as server:
        ask(folder, mixed, tmp_path / "out.jsonl", server.url)
    samples = {sample.key: sample for sample in training_samples(tmp_path / "out.jsonl")}
    assert len(samples) == 14
    second = samples["c2", 1]
    assert second.text == "answer to r2"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(list(second.response)) == "answer to r2<|eos|>"
    assert tokenizer.decode(list(second.prompt)) == (
        "<|user|>q2<|assistant|>answer to q2<|eos|><|user|>r2<|assistant|>"
    )
    assert samples["i", 0].prompt == (7, 8, 9)
    assert samples["i", 0].finish == "length"
    chats = [body for path, body in server.asked if path == "/v1/chat/completions"]
    again = next(body for body in chats if body["messages"][-1]["content"] == "r2")
    assert [m["role"] for m in again["messages"]] == ["user", "assistant", "user"]
    assert (again["max_tokens"], again["temperature"], again["model"]) == (9, 0.7, "m")
    plain = [body["prompt"] for path, body in server.asked if path == "/v1/completions"]
    assert plain == ["once upon", [7, 8, 9]] or plain == [[7, 8, 9], "once upon"]


@pytest.mark.law
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("alive", [0, 1, 5, 13])
def test_a_server_that_dies_loses_and_doubles_nothing(
    folder: Path, mixed: Path, tmp_path: Path, alive: int
) -> None:
    out = tmp_path / "out.jsonl"
    with serving(*[200] * alive, then=503) as server:
        with pytest.raises(ValueError, match=r"status 503 .*answers so far are kept"):
            ask(folder, mixed, out, server.url)
        done = [sample.key for sample in read_samples(out)]
        assert len(done) == alive
    with out.open("ab") as file:
        file.write(b'{"id": "c5", "tur')  # killed within a line
    with serving(429, 500) as server:
        ask(folder, mixed, out, server.url)
        assert len(server.asked) == 14 - alive + 2
    keys = [sample.key for sample in read_samples(out)]
    assert sorted(keys) == sorted(set(keys))
    assert len(keys) == 14
    assert keys[:alive] == done


@pytest.mark.example
@pytest.mark.usefixtures("impatient")
def test_a_refusing_or_a_missing_server_is_one_sentence(
    folder: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(then=400) as server:
        status = run_command(
            "generate", lambda: ask(folder, mixed, tmp_path / "a.jsonl", server.url)
        )
        assert len(server.asked) <= 3  # no retries, one request of each thread
    said = capsys.readouterr().err.splitlines()[-1]
    assert status == 2
    assert "status 400" in said
    assert "check model and prompt" in said
    with pytest.raises(ValueError, match=r"failed 5 times, lastly with .*Connection refused"):
        ask(folder, mixed, tmp_path / "b.jsonl", server.url)
    with pytest.raises(ValueError, match="begins with http"):
        Server(url="localhost:30000", model="m")


@pytest.mark.example
def test_a_log_of_other_settings_is_not_continued(folder: Path, whole: bytes) -> None:
    arguments = generate_arguments(folder, folder.parent / "whole.jsonl")
    with pytest.raises(ValueError, match=r"begun with temperature 1.0, now it is 0.5"):
        main([*arguments, "--temperature", "0.5"])
    stray = folder.parent / "stray.jsonl"
    stray.write_bytes(whole)
    with pytest.raises(ValueError, match=r"exists without stray.jsonl.settings.json"):
        main(generate_arguments(folder, stray))


@pytest.mark.example
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "z", "prompt": [1]', r":2: not valid JSON"),
        ('{"id": "z", "prompt": [1], "finish": "stop"}', r":2: response is missing"),
        ('{"id": "z", "prompt": [1], "response": ["a"], "finish": "stop"}', r":2: response: exp"),
        ('{"id": "z", "prompt": [1], "response": [2], "finish": "eos"}', r":2: finish 'eos'"),
        ('{"id": "a", "prompt": [1], "response": [2], "finish": "stop"}', r":2: id 'a' turn 0 is"),
    ],
)
def test_a_wrong_sample_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"id": "a", "prompt": [1], "response": [2], "finish": "stop"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read_samples(path)


@pytest.mark.example
def test_wrong_arguments_are_refused(folder: Path, tmp_path: Path) -> None:
    arguments = generate_arguments(folder, tmp_path / "o.jsonl")
    with pytest.raises(ValueError, match="--batch 0: give 1 or more"):
        main([*arguments, "--batch", "0"])
    with pytest.raises(ValueError, match=r"none.jsonl: cannot read: No such file"):
        main(["none.jsonl", *arguments[1:]])
    with pytest.raises(ValueError, match="exceed the target's 1024 positions"):
        main([*arguments, "--max-tokens", "5000"])
    with pytest.raises(ValueError, match="cannot load a tokenizer"):
        main([arguments[0], "--target", str(tmp_path), "--out", arguments[4]])
