"""consilium serve: starts a web page and a REST API for a model or ensemble.

Open the printed address and drop an image on the page: it shows the class, its calibrated
probability, the prediction of each model, and saliency maps. Programs send POST /v1/predict; its
schema is at /openapi.json. The probabilities are those of the evaluation. No image is stored, and
nothing is loaded from the internet. Research use only; not a medical device.
"""

import argparse
import os
from pathlib import Path

from consilium.cli.options import argument_parser, device, fraction, positive_int
from consilium.inference.export import BACKENDS, load_with_backend
from consilium.serving import TOKEN_VARIABLE


def run(argv: list[str]) -> int:
    """Serves until it is stopped."""
    args = parser().parse_args(argv)
    from consilium.serving import server, service, upload

    predictor = load_with_backend(args.model, args.backend, args.device)
    if args.refer_risk is not None:
        args.refer_below = server.referral_threshold(args.model, predictor, args.refer_risk)
    max_files = min(args.max_files, args.queue_size)  # more would never be admitted
    limits = (args.max_mb << 20, max_files, args.max_pixels, float(args.timeout))
    settings = service.ServerSettings(
        title=args.title or server.default_title(args.model),
        refer_below=args.refer_below,
        limits=upload.UploadLimits(*limits),
        queue_size=args.queue_size,
        max_batch=args.batch_size,
        token=args.token,
        hosts=service.LOCAL_HOSTS if args.host in server.LOOPBACK else [],
        examples=server.find_examples(args.examples),
    )
    with server.open_listener(args.host, args.port) as listener:
        server.serve(predictor, settings, listener)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    command = argument_parser("serve", __doc__)
    add = command.add_argument
    help_ = "checkpoint, run folder, ensemble.json or a folder of `consilium export`"
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help=help_)
    add("--port", type=int, default=8000, help="port; 0 chooses a free one (8000)")
    help_ = "address to listen on; 0.0.0.0 allows other machines (127.0.0.1, this machine only)"
    add("--host", default="127.0.0.1", help=help_)
    help_ = (f"token that requests must send; the environment variable {TOKEN_VARIABLE} hides it "
             "from other users of the machine")  # fmt: skip
    add("--token", default=os.environ.get(TOKEN_VARIABLE, ""), help=help_)
    add("--examples", type=Path, metavar="FOLDER", help="folder of example images for the page")
    referral = command.add_mutually_exclusive_group()
    help_ = "refer an image to a person if the probability of its class is below P"
    referral.add_argument("--refer-below", type=fraction, metavar="P", help=help_)
    help_ = "the same, with P such that at most this fraction of the other val images is wrong"
    referral.add_argument("--refer-risk", type=fraction, metavar="RISK", help=help_)
    help_ = "runtime for a checkpoint (torch); an export has the one of its format"
    add("--backend", choices=BACKENDS, help=help_)
    add("--device", type=device, default="cpu", help="cpu, cuda, cuda:N or auto (cpu)")
    add("--title", default="", help="title of the page (name of the model's folder)")
    help_ = "images that may wait; further requests get status 503 (64)"
    add("--queue-size", type=positive_int, default=64, metavar="N", help=help_)
    help_ = "waiting images that are predicted together (8); more on a GPU"
    add("--batch-size", type=positive_int, default=8, metavar="N", help=help_)
    add("--max-mb", type=positive_int, default=64, metavar="MB", help="size of a request (64)")
    help_ = "images in a request (16)"
    add("--max-files", type=positive_int, default=16, metavar="N", help=help_)
    help_ = "pixels of an image (50 million)"
    add("--max-pixels", type=positive_int, default=50_000_000, metavar="N", help=help_)
    help_ = "seconds for the body of a request, and again for its response (30)"
    add("--timeout", type=positive_int, default=30, metavar="S", help=help_)
    return command
