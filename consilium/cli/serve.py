"""Start a web page and a REST API for a model or ensemble.

Open the printed address and drop an image on the page: it shows the class, its calibrated
probability, the prediction of each model, and saliency maps. Programs send POST /v1/predict; its
schema is at /openapi.json. The probabilities are those of the evaluation. No image is stored, and
nothing is loaded from the internet. Research use only; not a medical device.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from consilium.cli.options import device, fraction, positive_int
from consilium.serving import TOKEN_VARIABLE

if TYPE_CHECKING:
    from consilium.inference.predictor import Predictor
    from consilium.serving.service import ServerSettings

EXAMPLES = """\
examples:
  consilium serve runs/demo/ensemble --examples data/phantoms --refer-below 0.9
  consilium serve runs/onnx --host 0.0.0.0 --token SECRET
"""
LIMITS = (
    ("queue-size", 64, "N", "images that may wait; further requests get status 503"),
    ("batch-size", 8, "N", "waiting images that are predicted together; more on a GPU"),
    ("max-mb", 64, "MB", "size of a request"),
    ("max-files", 16, "N", "images in a request"),
    ("max-pixels", 50_000_000, "N", "pixels of an image"),
    ("timeout", 30, "S", "seconds for the body of a request, and again for its response"),
)


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped."""
    from consilium.inference.export import load_with_backend
    from consilium.serving import server

    with server.open_listener(args.host, args.port) as listener:  # before the models are loaded
        print(f"loading {args.model}", file=sys.stderr)
        predictor = load_with_backend(args.model, args.backend, args.device)
        server.serve(predictor, server_settings(args, predictor), listener)
    return 0


def server_settings(args: argparse.Namespace, predictor: "Predictor") -> "ServerSettings":
    """The settings that the arguments and the model's folder give."""
    from consilium.inference.val_predictions import prediction_sets
    from consilium.serving import server, service, upload

    if args.refer_risk is not None:
        args.refer_below = server.referral_threshold(args.model, predictor, args.refer_risk)
    max_files = min(args.max_files, args.queue_size)  # more would never be admitted
    return service.ServerSettings(
        title=args.title or server.default_title(args.model),
        refer_below=args.refer_below,
        sets=args.sets and prediction_sets(args.model, predictor, args.sets),
        limits=upload.UploadLimits(args.max_mb << 20, max_files, args.max_pixels, args.timeout),
        queue_size=args.queue_size,
        max_batch=args.batch_size,
        token=args.token,
        hosts=service.LOCAL_HOSTS if args.host in server.LOOPBACK else [],
        examples=server.find_examples(args.examples, args.model),
        pointing=server.pointing_scores(args.model),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    help_ = "checkpoint, run folder, ensemble.json or a folder of `consilium export`"
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help=help_)
    add("--port", type=int, default=8000, help="port; 0 chooses a free one (8000)")
    help_ = "address to listen on; 0.0.0.0 allows other machines (127.0.0.1, this machine only)"
    add("--host", default="127.0.0.1", help=help_)
    help_ = (f"token that requests must send; the environment variable {TOKEN_VARIABLE} hides it "
             "from other users of the machine")  # fmt: skip
    add("--token", default=os.environ.get(TOKEN_VARIABLE, ""), help=help_)
    help_ = "folder of example images; of a folder with the model's data, its test images"
    add("--examples", type=Path, metavar="FOLDER", help=help_)
    referral = parser.add_mutually_exclusive_group()
    help_ = "refer an image to a person if the probability of its class is below P"
    referral.add_argument("--refer-below", type=fraction, metavar="P", help=help_)
    help_ = "the same, with P such that at most this fraction of the other val images is wrong"
    referral.add_argument("--refer-risk", type=fraction, metavar="RISK", help=help_)
    help_ = ("answer with a set of classes as well, which contains the right one at this rate in "
             "images of new patients, in each class; by the val split")  # fmt: skip
    add("--sets", type=fraction, metavar="RATE", help=help_)
    help_ = "runtime for a checkpoint: torch or onnxruntime (torch); an export has its format's"
    add("--backend", metavar="NAME", help=help_)
    add("--device", type=device, default="cpu", help="cpu, cuda, cuda:N or auto (cpu)")
    add("--title", default="", help="title of the page (name of the model's folder)")
    for name, default, metavar, text in LIMITS:
        help_ = f"{text} ({default:,})"
        add(f"--{name}", type=positive_int, default=default, metavar=metavar, help=help_)
