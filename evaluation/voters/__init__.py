"""Rules that combine the predictions of members, in one registry."""

from evaluation.voters.registry import VOTERS, VoterOptions, VoterSpec, unfitted_voters, voter_spec

__all__ = ["VOTERS", "VoterOptions", "VoterSpec", "unfitted_voters", "voter_spec"]
