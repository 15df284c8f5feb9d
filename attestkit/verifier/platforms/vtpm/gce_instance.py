"""The instance of Google Compute Engine that a verified AK certificate names (vtpm.md, 7.2)."""

from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance
from attestkit._sanitize import one_line
from attestkit._verification_steps import VerificationStep
from attestkit.verifier.claims import caution, passed, skipped

_LONGEST = 128  # characters of a name in a step


def gce_details(gce: GceInstance | None) -> tuple[tuple[str, str], ...]:
    """Return the details of `VtpmFacts` that a certificate names; empty without the extension."""
    if gce is None:
        return ()
    found = [
        ("gce_project", gce.project_id),
        ("gce_zone", gce.zone),
        ("gce_instance", gce.instance_name),
        ("gce_project_number", str(gce.project_number)),
        ("gce_instance_id", str(gce.instance_id)),
    ]
    if gce.security_version is not None:
        found.append(("gce_security_version", str(gce.security_version)))
    if gce.is_production is not None:
        found.append(("gce_is_production", "true" if gce.is_production else "false"))
    return tuple(found)


def instance_step(gce: GceInstance | None) -> VerificationStep:
    """Return the step about the instance that a certificate names."""
    if gce is None:
        return skipped("instance", "the AK certificate names no instance of Google Compute Engine")
    names = (gce.instance_name, gce.zone, gce.project_id)
    name, zone, project = (one_line(text, _LONGEST) for text in names)
    text = f"the AK is of instance {name} in zone {zone} of project {project}"
    if gce.is_production is False:
        return caution("instance", f"{text}, on a host that is not for production")
    return passed("instance", text)
