"""Devices that send back what they are sent, some of them with bad intentions, in one process:
``python -m tests.deploy.echo_edge KIT[,WORD…] …``.

Words: ``slow=S`` sleeps before every answer, ``fail`` raises, ``as=NAME`` claims another name than
its certificate's, ``from=NAME`` says in every frame that it comes from somebody else, ``run=ID``
greets for another session. Prints what each device has to say, with its kit's name before it.
"""

import dataclasses
import os
import sys
import threading
import time
from pathlib import Path

from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import nvflare_needed
from mlecs_jax.deploy.wire import Message
from mlecs_jax.errors import UserError


def main(devices: list[str]) -> None:
    nvflare_needed.prepare(limit_bytes=1 << 26, loopback=True)
    threads = [threading.Thread(target=run, args=device.split(",")) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.flush()
    os._exit(0)  # cells that could never connect keep trying


def run(folder: str, *words: str) -> None:
    """One device, until the cloud says that it is over or refuses it."""
    from mlecs_jax.deploy.nvflare_edge import EdgeLink

    options: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        options[key] = value
    kit = kits.load(Path(folder), cloud=False)
    session = kit.session()

    def say(line: str) -> None:
        print(f"{Path(folder).name}: {line}", flush=True)

    if "as" in options:
        kit = dataclasses.replace(kit, name=options["as"])
    if "run" in options:
        session = dataclasses.replace(session, run=options["run"])
    if "from" in options:
        forge(kit.name, options["from"])

    def handle(message: Message) -> Message:
        time.sleep(float(options.get("slow", "0")))
        if "fail" in options:
            raise ValueError("out of order")
        return Message(dataclasses.replace(message.header, sender=kit.name), message.arrays)

    link = EdgeLink(kit, session, say)
    try:
        link.connect()
        link.serve(handle)
        say("the run is over")
    except UserError as error:
        say(f"error: {error}")
    link.close()


def forge(name: str, other: str) -> None:
    """Makes every frame of one cell say that it comes from another."""
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey

    send = CoreCell._send_to_endpoint

    def forged(self, to_endpoint, message):
        if self.my_info.fqcn == name:
            message.set_header(MessageHeaderKey.ORIGIN, other)
        return send(self, to_endpoint, message)

    CoreCell._send_to_endpoint = forged


if __name__ == "__main__":
    main(sys.argv[1:])
