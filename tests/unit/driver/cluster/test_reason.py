"""What an error of a role says in the driver: the whole reason, however many lines it has."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayTaskError

from driver.cluster.calls import reason


def raised(cause: BaseException) -> RayTaskError:
    return RayTaskError("start", f"Traceback (most recent call last):\n  File x\n{cause}", cause)


def test_a_message_of_several_lines_keeps_its_first() -> None:
    """vLLM's errors end with a link, and pydantic's with a line that says nothing."""
    error = raised(
        ValueError("max_model_len (140) is greater than 128.\n\n  To allow it ..\nFor further information visit ..")
    )
    assert reason(error) == (
        "ValueError: max_model_len (140) is greater than 128. To allow it .. For further information visit"
    )


def test_a_message_of_one_line_and_of_none() -> None:
    assert reason(raised(RuntimeError("the disk is full."))) == "RuntimeError: the disk is full"
    assert reason(raised(KeyError())) == "KeyError"


def test_a_dead_role_says_why_without_rays_numbers() -> None:
    error = RayActorError(error_msg="The actor died.\n\tactor_id: 1\n\tpid: 2\nIts process has exited with code 3.")
    assert reason(error) == "The actor died. Its process has exited with code 3"
