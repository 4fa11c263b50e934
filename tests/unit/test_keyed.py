import random
import subprocess
import sys

import torch

from kiwi.keyed import forked_rng, key, normal, uniform


def test_equal_keys_give_equal_numbers_and_different_keys_do_not():
    assert torch.equal(normal((3, 4), 1, "noise", "a"), normal((3, 4), 1, "noise", "a"))
    assert not torch.equal(normal((3, 4), 1, "noise", "a"), normal((3, 4), 1, "noise", "b"))
    assert key(1, "2") != key("1", "2") != key("12")


def test_keys_do_not_depend_on_the_process():
    code = 'from kiwi.keyed import key, uniform; import sys; sys.stdout.write(f\'{key(7, "dit")} {uniform(7, "x")}\')'
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == f"{key(7, 'dit')} {uniform(7, 'x')}"


def test_forked_rng_does_not_change_the_outer_state():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with forked_rng(0, "vae"):
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)


def test_normal_has_mean_zero_and_standard_deviation_one():
    noise = normal((200_000,), 3)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01


def test_uniform_fills_the_unit_interval():
    numbers = [uniform(random.randrange(10**9), "u") for _ in range(2000)]
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1


def test_normal_is_float32_whatever_the_default_dtype():
    """Lightning's bf16-true precision changes the default dtype during a step."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert normal((2,), 3).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
