"""Every error that router-ml raises on purpose.

    RouterMlError
    ├── InputError            the user's data, file or request is wrong
    │   ├── CatalogError
    │   └── RequestError      one request to the router is wrong
    ├── BundleError           an artifact cannot be trusted or used
    ├── NoEligibleOfferError  hard constraints leave nothing to choose
    ├── RouterUnavailable     a server could not be reached or did not answer in time
    └── GateError             the work was done and a gate said no

The command line prints the message alone, without a traceback. A message names
the file, row or field, says what was expected and what to do.
"""

from __future__ import annotations


class RouterMlError(Exception):
    """Base of all errors raised on purpose; its text is written for the user."""


class InputError(RouterMlError):
    """A file, row, option or value given by the user is wrong."""


class CatalogError(InputError):
    """The catalog of models and offers is wrong."""


class RequestError(InputError):
    """A request to the router is wrong."""


class BundleError(RouterMlError):
    """A bundle is missing, damaged, tampered with or of a format this version cannot read."""


class NoEligibleOfferError(RouterMlError):
    """The hard constraints of a request leave no offer."""

    def __init__(self, rejected: dict[str, str]) -> None:
        self.rejected = rejected
        """Offer name -> reason."""
        listed = ", ".join(f"{offer}: {reason}" for offer, reason in rejected.items())
        super().__init__(
            f"no offer is eligible under the constraints of this request ({listed}); "
            "relax a constraint or add an offer to the catalog"
        )


class RouterUnavailable(RouterMlError):
    """The router server could not be reached, or did not answer within the deadline."""


class GateError(RouterMlError):
    """A gate refused the result of work that was otherwise done, e.g. the parity gate."""
