"""Rows go through the network in as few passes as memory allows."""

from hypothesis import given
from hypothesis import strategies as st

from kubeformer_runtime.trainer.budget import rows_per_pass
from tests.unit.model.builders import classifier_config, llama_config

GIB = 1 << 30


@given(memory=st.integers(0, 200 * GIB), length=st.integers(1, 8192), parameters=st.integers(1, 10**10))
def test_it_is_a_power_of_two_and_never_none(memory: int, length: int, parameters: int) -> None:
    rows = rows_per_pass(llama_config(), parameters, length, memory, on_cpu=False)
    assert rows >= 1
    assert rows & (rows - 1) == 0


@given(memory=st.integers(GIB, 100 * GIB), length=st.integers(8, 2048))
def test_more_memory_never_means_fewer_rows_and_longer_ones_never_more(memory: int, length: int) -> None:
    config, parameters = llama_config(), 10**6
    rows = rows_per_pass(config, parameters, length, memory, on_cpu=False)
    assert rows <= rows_per_pass(config, parameters, length, 2 * memory, on_cpu=False)
    assert rows >= rows_per_pass(config, parameters, 2 * length, memory, on_cpu=False)


def test_a_spam_filter_takes_its_whole_batch_at_once_on_one_gibibyte() -> None:
    config = classifier_config(vocabulary_size=8192, width=128, mlp_width=512, max_length=128)
    assert rows_per_pass(config, 1_500_000, 128, GIB, on_cpu=True) >= 32


def test_the_logits_of_a_large_vocabulary_are_counted() -> None:
    small, large = llama_config(vocabulary_size=1000), llama_config(vocabulary_size=100_000)
    few = rows_per_pass(large, 10**7, 512, 4 * GIB, on_cpu=False)
    assert few * 512 * 100_000 * 3 * 4 < 4 * GIB
    assert few < rows_per_pass(small, 10**7, 512, 4 * GIB, on_cpu=False)


def test_on_cpus_a_pass_stays_short() -> None:
    config = llama_config(vocabulary_size=49152, width=576, layers=30, mlp_width=1536)
    assert rows_per_pass(config, 135_000_000, 512, 100 * GIB, on_cpu=True) == 1
