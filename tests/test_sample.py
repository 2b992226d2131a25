"""sample.py as its users run it, and the parts of it that choose tokens."""

import importlib
import io

import pytest
import torch

from conftest import ROOT, assert_one_sentence, random_model

ALPHABET = "chars:0123456789,#"


@pytest.fixture
def reverser(data):
    return f"--model={data('rwkv7-reverse/rwkv7-reverse-L4-D128-H64.pth')}", f"--tokenizer={ALPHABET}"


def test_a_trained_checkpoint_reverses_a_number(reverser, script):
    error, out = script(*reverser, "--prompt=31415926535,", "--temperature=0", name="sample.py")
    assert error is None
    assert out.splitlines()[-1].split() == ["output", "53562951413"]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_reverse_it_as_well(reverser, script, dtype):
    args = (*reverser, "--prompt=31415926535,", "--temperature=0", f"--dtype={dtype}", "--device=cpu")
    error, out = script(*args, name="sample.py")
    assert error is None
    assert out.splitlines()[-1].split() == ["output", "53562951413"]


def test_without_a_compiler_the_model_decodes(reverser, script, monkeypatch):
    monkeypatch.setattr("wkv_cuda.decode.backend", lambda: "torch")
    error, out = script(*reverser, "--prompt=31415926535,", "--temperature=0", "--device=cpu", name="sample.py")
    assert error is None
    assert out.splitlines()[-1].split() == ["output", "53562951413"]
    error, _ = script(*reverser, "--prompt=3,", "--dtype=int8", name="sample.py")
    assert "C++" in error


def test_stop_strings_end_the_output_and_are_not_printed(reverser, script):
    args = (*reverser, "--prompt=31415926535,", "--temperature=0", "--stop=['62', '29']")
    _, out = script(*args, name="sample.py")
    assert out.splitlines()[-1].split() == ["output", "535"]


def test_the_newest_run_fills_in_its_validation_rows(script, tmp_path, monkeypatch):
    sizes = ("--n_layer=2", "--n_embd=32", "--head_size=16", "--n_val=4", "--n_train=64", "--bsz=4", "--max_steps=2")
    task = ("--tokenizer=chars:0123456789LMR=|_#", "--task_args.n_digits=3", f"--out_dir={tmp_path / 'out'}")
    assert script(*sizes, *task, "--compare", name="train_sft.py")[0] is None
    (run,) = (tmp_path / "out").iterdir()
    error, out = script(f"--model={run}", "--n_examples=2", "--compare", name="sample.py")
    assert error is None
    assert [line.split()[0] for line in out.splitlines() if line] == ["prompt", "target", "seed", "seed"] * 2
    filled = [line.split()[-1] for line in out.splitlines() if line.startswith("seed")]
    assert all("_" not in text or len(text) == len("L=000|M=000|R=000") for text in filled)
    error, out = script(f"--model={run / 'off'}", "--prompt=L=123|M=___|R=456", name="sample.py")
    assert error is None
    assert "L=123|M=" in out
    error, _ = script(f"--model={run / 'off'}", "--compare", name="sample.py")
    assert "seed.pt" in error


def test_arms_without_a_seed(script, tmp_path):
    sizes = ("--n_layer=2", "--n_embd=32", "--head_size=16", "--n_val=4", "--n_train=64", "--bsz=4", "--max_steps=1")
    task = ("--tokenizer=chars:0123456789LMR=|_#", "--task_args.n_digits=3")
    args = (*sizes, *task, f"--out_dir={tmp_path / 'twice'}", "--read_twice", "--future_seed=False")
    assert script(*args, name="train_sft.py")[0] is None
    error, _ = script(f"--model={next((tmp_path / 'twice').iterdir())}", name="sample.py")
    assert_one_sentence(error, ["reading twice"])
    args = (*sizes, *task, f"--out_dir={tmp_path / 'off'}", "--arms=['off']", "--task_args.kind=rightcopy")
    assert script(*args, name="train_diffusion.py")[0] is None
    error, out = script(f"--model={next((tmp_path / 'off').iterdir())}", "--n_examples=1", name="sample.py")
    assert error is None
    assert out.count("output") == 1


def test_a_chat_reads_the_whole_conversation_again(script, tmp_path, monkeypatch):
    random_model(2, 64, 256, 64).save(tmp_path / "bytes.pth")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello there\nagain\n\n"))
    read = []
    from model import RWKV7

    real = RWKV7.prefill
    monkeypatch.setattr(
        RWKV7, "prefill", lambda self, ids, **kw: (read.append(bytes(ids[0].tolist())), real(self, ids, **kw))[1]
    )
    args = (f"--model={tmp_path / 'bytes.pth'}", "--tokenizer=bytes", "--chat", "--max_new_tokens=3")
    assert script(*args, name="sample.py")[0] is None
    assert read[0] == b"User: hello there\n\nAssistant:"
    assert read[1].startswith(read[0])
    assert read[1].endswith(b"\n\nUser: again\n\nAssistant:")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model=nowhere.pth", "--prompt=x"], ["nowhere.pth"]),
        (["--model=unheard-of", "--prompt=x"], ["unheard-of", "python -m common.download"]),
        (["--chat", "--compare"], ["chat", "compare"]),
        (["--model=nowhere.pth", "--prompt=x", "--dtype=float16"], ["float16", "bfloat16"]),
        (["--promt=x"], ["promt", "did you mean 'prompt'"]),
        (["--model=nowhere.pth", "--prompt=x", "--temperature=-1"], ["temperature=-1", "at least 0"]),
    ],
)
def test_mistakes(script, args, words):
    error, _ = script(*args, name="sample.py")
    assert_one_sentence(error, words)


def test_no_model_yet_says_how_to_get_one(script, monkeypatch):
    monkeypatch.setattr("common.run.newest_run", lambda: None)
    error, _ = script("--prompt=x", name="sample.py")
    assert "train_sft.py configs/quickstart.py" in error


def test_a_prompt_that_the_tokenizer_can_not_write(reverser, script):
    error, _ = script(*reverser, "--prompt=hello", name="sample.py")
    assert "'h'" in error


class TestPick:
    """Drawing a token, against the rules of pip rwkv's PIPELINE (top-p before temperature, decaying penalties)."""

    @pytest.fixture
    def sample(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT))
        return importlib.import_module("sample")

    def frequencies(self, sample, logits, n=4000, **settings):
        for k, v in settings.items():
            setattr(sample, k, v)
        g = torch.Generator().manual_seed(0)
        drawn = [sample.pick(torch.tensor(logits), {}, g) for _ in range(n)]
        return [drawn.count(i) / n for i in range(len(logits))]

    def test_temperature_and_top_p(self, sample, monkeypatch):
        p = torch.tensor([0.5, 0.3, 0.15, 0.05])
        logits = p.log().tolist()
        assert self.frequencies(sample, logits, temperature=1.0, top_p=1.0) == pytest.approx(p.tolist(), abs=0.03)
        assert self.frequencies(sample, logits, top_p=0.7) == pytest.approx([5 / 8, 3 / 8, 0, 0], abs=0.03)
        sharp = p[:2] ** 2 / (p[:2] ** 2).sum()
        assert self.frequencies(sample, logits, temperature=0.5) == pytest.approx([*sharp.tolist(), 0, 0], abs=0.03)
        assert self.frequencies(sample, logits, n=10, temperature=0) == [1, 0, 0, 0]
        assert self.frequencies(sample, [0.02, *[0.0] * 999], n=10, temperature=0.001) == [1, *[0] * 999]
        monkeypatch.setattr(sample, "temperature", 1.0)

    def test_agrees_with_pip_rwkv(self, sample):
        utils = pytest.importorskip("rwkv.utils", reason="the package rwkv is not installed")
        pipeline = object.__new__(utils.PIPELINE)
        logits = torch.randn(30, generator=torch.Generator().manual_seed(3)) * 2
        torch.manual_seed(0)
        theirs = [pipeline.sample_logits(logits.clone(), temperature=0.8, top_p=0.6) for _ in range(4000)]
        ours = self.frequencies(sample, logits.tolist(), temperature=0.8, top_p=0.6)
        assert ours == pytest.approx([theirs.count(i) / 4000 for i in range(30)], abs=0.04)

    def test_penalties(self, sample):
        sample.temperature, sample.presence_penalty, sample.frequency_penalty = 0, 1.0, 0.5
        try:
            assert sample.pick(torch.tensor([2.0, 1.0]), {}, None) == 0
            assert sample.pick(torch.tensor([2.0, 1.0]), {0: 1.0}, None) == 1
            assert sample.pick(torch.tensor([2.6, 1.0]), {0: 1.0}, None) == 0
            assert sample.pick(torch.tensor([2.6, 1.0]), {0: 2.0}, None) == 1
        finally:
            sample.temperature, sample.presence_penalty, sample.frequency_penalty = 1.0, 0.0, 0.0
