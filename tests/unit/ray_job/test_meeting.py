"""The ranks of a ray job find each other, and nobody else finds a way in."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from suanli.ray_job import meeting
from suanli.ray_job.plan import RayJobError
from suanli.ray_nodes import free_ports

HOST = "127.0.0.1"
TOKEN = b"the attempt's token"


@pytest.fixture
def port() -> int:
    with free_ports(1) as (found,):
        return found


@pytest.fixture
async def host(port: int) -> AsyncIterator[meeting.Host]:
    made = meeting.Host(TOKEN, 3)
    await made.open(HOST, port)
    yield made
    await made.close(orderly=False)


async def within(seconds: float, work: object) -> object:
    async with asyncio.timeout(seconds):
        return await work  # type: ignore[misc]


async def test_ranks_hear_where_the_head_is_join_and_hear_the_end(host: meeting.Host, port: int) -> None:
    early = await meeting.call(HOST, port, 1, TOKEN, 5)
    host.announce("127.0.0.1:99")
    late = await meeting.call(HOST, port, 2, TOKEN, 5)
    for guest in (early, late):
        assert await within(5, guest.address()) == "127.0.0.1:99"
    early.up()
    waiting = asyncio.create_task(host.all_up(5))
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    late.up()
    await waiting
    await host.close(orderly=True)
    assert [await within(5, guest.over()) for guest in (early, late)] == [True, True]


async def test_who_is_missing_is_named(host: meeting.Host, port: int) -> None:
    guest = await meeting.call(HOST, port, 2, TOKEN, 5)
    guest.up()
    with pytest.raises(RayJobError, match=r"did not join within 0.2 s: 1$"):
        await host.all_up(0.2)


async def test_a_rank_that_goes_is_missed_at_once(host: meeting.Host, port: int) -> None:
    guest = await meeting.call(HOST, port, 2, TOKEN, 5)
    guest.close()
    assert await within(5, host.lost()) == "the Ray node of rank 2 is gone"


async def test_a_rank_says_why_it_fails(host: meeting.Host, port: int) -> None:
    guest = await meeting.call(HOST, port, 1, TOKEN, 5)
    await guest.failed("Ray\nsays no " + "x" * 2000)
    said = await within(5, host.lost())
    assert isinstance(said, str)
    assert said.startswith("rank 1: Ray says no xxx")
    assert len(said) < 400


async def test_a_head_that_goes_without_a_word_is_no_good_end(host: meeting.Host, port: int) -> None:
    first = await meeting.call(HOST, port, 1, TOKEN, 5)
    second = await meeting.call(HOST, port, 2, TOKEN, 5)
    await host.close(orderly=False)
    assert await within(5, first.over()) is False
    with pytest.raises(RayJobError, match="gone before it was up"):
        await within(5, second.address())


@pytest.mark.parametrize("token", [b"another token", b""])
async def test_a_caller_without_the_token_is_turned_away(host: meeting.Host, port: int, token: bytes) -> None:
    with pytest.raises(RayJobError, match=rf"rank 1 did not find rank 0 at 127.0.0.1:{port} within 0.5 s"):
        await meeting.call(HOST, port, 1, token, 0.5)
    assert (await meeting.call(HOST, port, 1, TOKEN, 5)) is not None


@pytest.mark.parametrize("rank", [0, 1, 3, -1])
async def test_a_rank_that_is_not_awaited_is_turned_away(host: meeting.Host, port: int, rank: int) -> None:
    there = await meeting.call(HOST, port, 1, TOKEN, 5)
    with pytest.raises(RayJobError, match="did not find"):
        await meeting.call(HOST, port, rank, TOKEN, 0.3)
    there.close()


@pytest.mark.parametrize(
    "said", [b"\n", b"1\n", b"1 a b c\n", b"one two " + b"0" * 64 + b"\n", b"x" * 100_000, b"\xff\xfe \xff \xff\n"]
)
async def test_strangers_do_no_harm(host: meeting.Host, port: int, said: bytes) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(said)
    writer.write_eof()
    await within(5, reader.read())
    writer.close()
    assert (await meeting.call(HOST, port, 1, TOKEN, 5)) is not None


async def test_strangers_who_say_nothing_keep_no_rank_out(host: meeting.Host, port: int) -> None:
    idle = [await asyncio.open_connection(HOST, port) for _ in range(20)]
    assert (await meeting.call(HOST, port, 1, TOKEN, 5)) is not None
    for _, writer in idle:
        writer.close()


async def test_an_impostor_at_the_port_is_not_believed(port: int) -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"00\n")
        await reader.readline()
        writer.write(b"0" * 64 + b"\nstart 127.0.0.1:666\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(pretend, HOST, port):
        with pytest.raises(RayJobError, match="whoever answers there is not of this job"):
            await meeting.call(HOST, port, 1, TOKEN, 0.5)


async def test_a_port_that_is_taken_is_said(host: meeting.Host, port: int) -> None:
    with pytest.raises(RayJobError, match="cannot listen"):
        await meeting.Host(TOKEN, 2).open(HOST, port)
