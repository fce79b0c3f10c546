"""The base models of the exact worlds: real transformers models that follow their transition table or their seed."""

import itertools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dinado.bases.markov import build_markov, transition_table
from dinado.bases.tiny_gpt2 import build_tiny_gpt2
from dinado.errors import ConfigError
from dinado.seeding import generator


@pytest.mark.parametrize(("vocab_size", "required"), [(1, ()), (12, (12,)), (12, (0,))])
def test_impossible_tables_are_user_errors(vocab_size, required):
    with pytest.raises(ConfigError, match=r"^task\."):
        build_markov(vocab_size, 0, required)


def test_markov_logits_are_rows_of_the_table_with_and_without_cache():
    model, _ = build_markov(6, 2, (3,), rarity=-1.0)
    table = transition_table(6, 2, (3,), rarity=-1.0)
    torch.testing.assert_close(table[:, 3], transition_table(6, 2)[:, 3] - 1)
    ids = torch.tensor([[0, 3, 5], [0, 0, 2]])
    outputs = model(ids, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, table[ids])
    torch.testing.assert_close(model.get_output_embeddings()(outputs.hidden_states[-1]), outputs.logits)
    body = model.base_model(input_ids=ids, use_cache=False)
    assert body.hidden_states is None and body.past_key_values is None
    torch.testing.assert_close(body.last_hidden_state, torch.eye(6)[ids])
    assert model.config.hidden_size == 6

    start = model(ids[:, :2], use_cache=True)
    assert start.past_key_values.get_seq_length() == 2
    step = model(ids[:, 2:], past_key_values=start.past_key_values, use_cache=True)
    assert step.past_key_values.get_seq_length() == 3
    torch.testing.assert_close(step.logits, outputs.logits[:, 2:])
    expected = torch.nn.functional.cross_entropy(table[ids[:, :-1]].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model(ids, labels=ids).loss, expected)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_left_padding_changes_nothing_in_greedy_and_beam_search(num_beams):
    for model, tokenizer in (build_markov(8, 3), build_tiny_gpt2(8, 3)):
        prompts = ["<eos> 3 4 2", "<eos> 5", "<eos>"]
        settings = {"num_beams": num_beams, "do_sample": False, "max_new_tokens": 6}
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        batched = model.generate(batch.input_ids, attention_mask=batch.attention_mask, **settings)[:, 4:].tolist()
        for prompt, row in zip(prompts, batched, strict=True):
            single = tokenizer(prompt, return_tensors="pt")
            alone = model.generate(single.input_ids, attention_mask=single.attention_mask, **settings)
            alone = alone[0, single.input_ids.shape[1] :].tolist()
            assert row == alone + [0] * (len(row) - len(alone))


def test_generate_samples_the_transition_table():
    model, _ = build_markov(5, 4)
    prompt = torch.zeros(3000, 1, dtype=torch.long)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0, max_new_tokens=6)
    counts = torch.zeros(5, 5)
    alive = torch.ones(3000, dtype=torch.bool)
    for last, token in itertools.pairwise(ids.T):
        counts.index_put_((last[alive], token[alive]), torch.ones(int(alive.sum())), accumulate=True)
        alive &= token != 0
    expected = counts.sum(-1, keepdim=True) * transition_table(5, 4).softmax(-1)
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert expected.min() > 5 and chi2 < 20 + 4 * math.sqrt(2 * 20)  # 5 rows of 4 degrees of freedom


def test_saved_models_load_through_the_auto_classes(tmp_path):
    for name, (model, tokenizer) in {"markov": build_markov(7, 5), "gpt2": build_tiny_gpt2(7, 5)}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert type(loaded) is type(model)
        ids = torch.tensor([[0, 6, 1, 2]])
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)
        assert AutoTokenizer.from_pretrained(tmp_path / name)("<eos> 6 1").input_ids == [0, 6, 1]


def test_tokenizer_reads_and_writes_numbers():
    _, tokenizer = build_markov(12, 0)
    assert tokenizer.decode([3, 11, 1, 0], skip_special_tokens=True) == "3 11 1"
    assert tokenizer.decode([3, 0]) == "3 <eos>"
    assert tokenizer("3 11 <eos>").input_ids == [3, 11, 0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (0, 0, 0, 12)
    padded = tokenizer(["1", "2 3"], padding=True)
    assert padded.input_ids == [[0, 1], [2, 3]] and padded.attention_mask == [[0, 1], [1, 1]]
    with pytest.raises(Exception, match="UNK"):
        tokenizer("12")


@pytest.mark.parametrize("build", [build_markov, build_tiny_gpt2])
def test_models_depend_on_their_seed_alone(build):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(6, 0)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    ids = torch.tensor([[0, 1, 2, 3]])
    assert torch.equal(first(ids).logits, build(6, 0)[0](ids).logits)
    assert not torch.allclose(first(ids).logits, build(6, 1)[0](ids).logits)
    assert not first.training


@pytest.mark.parametrize("seed", range(4))
def test_tiny_gpt2_reads_its_whole_prefix_and_ends_at_a_moderate_rate(seed):
    model, _ = build_tiny_gpt2(6, seed)
    ids = torch.randint(1, 6, (500, 5), generator=generator("prefixes"))
    ids[:, 0], ids[:, -1] = 0, 1
    with torch.no_grad():
        p_BV = model(ids).logits[:, -1].softmax(-1)
    mean_V = p_BV.mean(0)
    information = (p_BV * (p_BV / mean_V).log()).sum(-1).mean()
    assert information > 0.02  # nats about the next token beyond the last one
    assert 0.01 < mean_V[0] < 0.3
    assert (p_BV.log() * p_BV).sum(-1).mean() > -0.95 * math.log(6)
