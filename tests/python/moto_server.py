"""moto, a simulated AWS, on a free port of loopback: its URL is printed once it listens. Ends with its input."""

import datetime
import sys

import moto.ecr.responses
from moto.server import ThreadedMotoServer


def in_twelve_hours(*_, **__):
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=12)


# Its tokens ran out in 2015; those of ECR are good for twelve hours.
moto.ecr.responses.datetime = in_twelve_hours

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
