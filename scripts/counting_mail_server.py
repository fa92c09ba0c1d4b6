"""An SMTP server that is not ours (aiosmtpd) and that counts: mails, and those that came more than once.

usage: counting_mail_server.py PORT COUNTS_FILE

It writes {"received", "distinct", "duplicates"} to COUNTS_FILE when it is told to stop (SIGTERM).
"""

import asyncio
import json
import signal
import sys

from aiosmtpd.smtp import SMTP


class Counter:
    """Keeps the Message-ID of each mail."""

    def __init__(self):
        self.received = 0
        self.message_ids = set()

    async def handle_DATA(self, server, session, envelope):
        head = envelope.content.split(b"\r\n\r\n", 1)[0]
        ids = [line for line in head.split(b"\r\n") if line.lower().startswith(b"message-id:")]
        if len(ids) != 1:
            return "554 5.6.0 exactly one Message-ID is wanted"
        self.received += 1
        self.message_ids.add(ids[0])
        return "250 2.0.0 counted"


async def main(port, counts_file):
    loop = asyncio.get_running_loop()
    counter, stop = Counter(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: SMTP(counter, enable_SMTPUTF8=True, loop=loop), "127.0.0.1", port)
    print("ready", flush=True)
    await stop.wait()
    server.close()
    distinct = len(counter.message_ids)
    counts = {"received": counter.received, "distinct": distinct, "duplicates": counter.received - distinct}
    with open(counts_file, "w", encoding="utf-8") as file:
        json.dump(counts, file)


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
