"""Which kind of index suits so many rows, what it is called, and how much memory it is said to take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebr.config.index import IndexConfig
from ebr.errors import ConfigError
from ebr.retrieval.index.kinds import IndexSpec, Kind, bytes_text, choose_kind, n_lists_for

GB = 10**9


def test_the_kinds_are_those_that_the_option_offers():
    offered = IndexConfig.model_fields["kind"].annotation.__args__
    assert set(offered) == {"auto", *(kind.value for kind in Kind)}


def test_few_rows_are_looked_at_one_by_one():
    # 2^23 numbers are 21,845 rows of 384.
    assert choose_kind(21_845, 384, 8 * GB)[0] is Kind.FLAT
    assert choose_kind(21_846, 384, 8 * GB)[0] is Kind.IVF_PQ_FLAT


@pytest.mark.parametrize(
    ("budget", "kind"),
    [
        (2 * GB, Kind.IVF_PQ_FLAT),  # codes 192 / 2 + id 8 + vector 1536 bytes a row
        (GB, Kind.IVF_PQ_FP16),  # 96 + 8 + 768
        (GB // 2, Kind.IVF_PQ_SQ8),  # 96 + 8 + 384 = 488, and centroids
        (GB // 5, Kind.IVF_PQ),  # 96 + 8
    ],
)
def test_of_a_million_rows_auto_takes_the_finest_that_fits_and_says_why(budget, kind):
    chosen, why = choose_kind(1_000_000, 384, budget)
    assert chosen is kind
    assert "1,000,000 rows of 384" in why and "\n" not in why
    assert (kind is Kind.IVF_PQ_FLAT) == ("would take" not in why)


def test_what_fits_nowhere_is_refused_with_the_least_that_it_takes():
    with pytest.raises(ConfigError, match=r"memory_budget 50\.0 MB: .* \(ivf_pq\) takes 110\.6 MB; raise it"):
        choose_kind(1_000_000, 384, 50_000_000)


def test_memory_of_each_kind_by_hand():
    def bytes_of(kind, n_rows=1000, dim=64, n_lists=10):
        return IndexSpec(kind, n_rows, dim, n_lists if kind.has_lists else 0).predicted_bytes

    lists = 1000 * 8 + 10 * 64 * 4
    codes = (1000 + 10 * 16) * (16 + 8) + 10 * 64 * 4  # 32 codes of half a byte; lists filled up to blocks of 32 rows
    assert bytes_of(Kind.FLAT) == 1000 * 256
    assert bytes_of(Kind.IVF) == 1000 * 256 + lists
    assert bytes_of(Kind.IVF_SQ8) == 1000 * 64 + lists
    assert bytes_of(Kind.HNSW) == 1000 * (256 + 65 * 4 + 12)
    assert bytes_of(Kind.HNSW_SQ8) == 1000 * (64 + 65 * 4 + 12)
    assert bytes_of(Kind.PQ) == (1000 + 16) * 16
    assert bytes_of(Kind.IVF_PQ) == codes
    assert [bytes_of(kind) - codes for kind in (Kind.IVF_PQ_SQ8, Kind.IVF_PQ_FP16, Kind.IVF_PQ_FLAT)] == [
        64_000, 128_000, 256_000
    ]  # fmt: skip


def test_lists_are_about_twice_the_root_of_the_rows_and_each_can_be_learned():
    assert n_lists_for(1_000_000) == 2048
    assert n_lists_for(100_000_000) == 16_384
    assert n_lists_for(1000) == 25  # 1000 / 39
    assert n_lists_for(3) == 1


@given(st.integers(1, 10**8))
def test_there_are_always_enough_rows_to_learn_the_lists_from(n_rows):
    spec = IndexSpec.of(Kind.IVF, n_rows, 8)
    assert 1 <= spec.n_lists <= n_rows
    assert spec.n_training <= n_rows
    assert spec.n_lists == 1 or spec.n_training >= 39 * spec.n_lists


@pytest.mark.parametrize(("dim", "codes"), [(384, "PQ192x4fs"), (33, "PQ33x4fs"), (2, "PQ1x4fs"), (1, "PQ1x4fs")])
def test_codes_are_of_two_numbers_or_of_one_where_the_dimension_is_odd(dim, codes):
    assert IndexSpec(Kind.PQ, 100, dim, 0).factory == codes
    assert IndexSpec(Kind.IVF_PQ_SQ8, 100, dim, 4).factory == f"IVF4,{codes},Refine(SQ8)"


def test_too_few_rows_for_codes_are_refused():
    with pytest.raises(ConfigError, match="kind ivf_pq: learns its codes from 16 rows or more, not 15; take flat"):
        IndexSpec.of(Kind.IVF_PQ, 15, 8)
    assert IndexSpec.of(Kind.IVF_PQ, 16, 8).n_lists == 1


def test_what_nothing_is_learned_for_needs_no_sample():
    assert IndexSpec.of(Kind.FLAT, 10_000, 8).n_training == IndexSpec.of(Kind.HNSW, 10_000, 8).n_training == 0
    assert IndexSpec.of(Kind.HNSW_SQ8, 10_000, 8).n_training == 10_000
    assert IndexSpec.of(Kind.IVF, 10**6, 8).n_training == 2048 * 64


def test_cost_counts_the_lists_looked_at_and_what_is_ranked_again():
    spec = IndexSpec(Kind.IVF_PQ_FLAT, 1000, 64, 10)
    assert spec.cost({"nprobe": 5, "k_factor": 2}, 10) == 500 * 16 + 4 * 20 * 256
    assert IndexSpec(Kind.IVF, 1000, 64, 10).cost({"nprobe": 10}, 10) == 1000 * 256


@pytest.mark.parametrize(("n_bytes", "text"), [(1_640_000_000, "1.64 GB"), (25_300_000, "25.3 MB"), (812_000, "812 kB")])
def test_bytes_are_said_in_three_digits(n_bytes, text):
    assert bytes_text(n_bytes) == text
