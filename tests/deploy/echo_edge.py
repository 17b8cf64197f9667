"""A process that answers the cloud with what it was sent: ``python -m tests.deploy.echo_edge KIT``.

Words after the kit change what it does: ``slow=S`` sleeps before it answers, ``fail`` raises,
``as=NAME`` claims another name than its certificate's, ``from=NAME`` sends frames with a forged
sender, ``run=ID`` says hello for another session.
"""

import dataclasses
import sys
import time
from pathlib import Path

from mlecs_jax.deploy import kit as kits
from mlecs_jax.deploy import nvflare_needed
from mlecs_jax.deploy.wire import Message
from mlecs_jax.errors import UserError


def main(folder: str, *words: str) -> int:
    options = dict(word.partition("=")[::2] for word in words)
    kit = kits.load(Path(folder), cloud=False)
    session = kit.session()
    nvflare_needed.prepare(limit_bytes=session.limits.limit_bytes, loopback=True)
    from mlecs_jax.deploy.nvflare_edge import EdgeLink

    if "as" in options:
        kit = dataclasses.replace(kit, name=options["as"])
    if "run" in options:
        session = dataclasses.replace(session, run=options["run"])
    if "from" in options:
        forge(options["from"])

    def handle(message: Message) -> Message:
        time.sleep(float(options.get("slow", 0)))
        if "fail" in options:
            raise ValueError("out of order")
        return Message(dataclasses.replace(message.header, sender=kit.name), message.arrays)

    link = EdgeLink(kit, session, lambda line: print(line, flush=True))
    try:
        link.connect()
        link.serve(handle)
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 2
    finally:
        link.close()
    return 0


def forge(name: str) -> None:
    """Makes every frame of this process say that it comes from somebody else."""
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey

    send = CoreCell._send_to_endpoint

    def forged(self, to_endpoint, message):
        message.set_header(MessageHeaderKey.ORIGIN, name)
        return send(self, to_endpoint, message)

    CoreCell._send_to_endpoint = forged


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
