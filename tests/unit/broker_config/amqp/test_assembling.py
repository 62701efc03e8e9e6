"""Bodies are assembled in their final place: a large body needs its size in RAM once."""

import pika
import pytest
from pika.exceptions import BodyTooLongError
from pika.frame import Body, Header, Method

from fedmq.broker_config.amqp.driver import _AssemblerInPlace


def assemble(assembler, size, *pieces):
    assembler.process(Method(1, pika.spec.Basic.Deliver("c", 1, False, "x", "k")))
    whole = assembler.process(Header(1, size, pika.BasicProperties()))
    for piece in pieces:
        assert whole is None
        whole = assembler.process(Body(1, piece))
    return None if whole is None else whole[2]


def test_the_pieces_of_one_message_after_another_come_out_whole():
    assembler = _AssemblerInPlace()
    assert assemble(assembler, 6, b"ab", b"cde", b"f") == b"abcdef"
    assert assemble(assembler, 0) == b""
    assert assemble(assembler, 4, b"wxyz") == b"wxyz"
    assert assemble(assembler, 3, b"1", b"23") == b"123"


def test_the_first_piece_brings_the_memory_of_the_whole_and_no_piece_is_kept():
    assembler = _AssemblerInPlace()
    assert assemble(assembler, 6, b"ab", b"cd") is None
    assert assembler._body_fragments == [bytearray(b"abcd\0\0")]


def test_more_than_the_header_announced_is_refused():
    with pytest.raises(BodyTooLongError):
        assemble(_AssemblerInPlace(), 3, b"ab", b"cd")
