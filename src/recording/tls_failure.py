"""What is wrong with a server's TLS, in a sentence for the client. Knows no connections."""

import ssl

from contract.errors import TlsFailed

# Result codes of OpenSSL's verification, see X509_STORE_CTX_get_error(3).
CERTIFICATE_PROBLEMS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "is signed by an authority that is not known",
    20: "comes without the certificate of its issuer, or the issuer is not known",
    21: "comes without the certificate of its issuer, or the issuer is not known",
    62: "is for another host name",
    64: "is for another address",
}
# OpenSSL's reasons for an answer that is no TLS. Which one it gives depends on its version.
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


def tls_failure(host: str, error: ssl.SSLError) -> TlsFailed | None:
    """The failure to report for an `error` of the handshake; None where it may be temporary."""
    if isinstance(error, ssl.SSLCertVerificationError):
        other = f"is not valid ({error.verify_message})"
        problem = CERTIFICATE_PROBLEMS.get(error.verify_code, other)
        return TlsFailed(
            f"The certificate of {host} {problem}; "
            "it must be valid for this host and come with its intermediate certificates."
        )
    if error.reason in NO_TLS:
        return TlsFailed(
            f"{host} does not answer with TLS at this port; "
            "the URL must begin with http://, or have the port of https."
        )
    return None
