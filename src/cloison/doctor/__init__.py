"""Is this machine fit for Cloison, and if not, how is it mended?

In: the host as it is. Out: one ``CheckResult`` per row of the table of checks. May import: layout, errors, policy's
loader, the hypervisor's probe, the template sources, and whether the daemon listens. It changes nothing.
"""

from cloison.doctor.checkup import CheckResult, Ground, Status, exit_status, run_checks

__all__ = ["CheckResult", "Ground", "Status", "exit_status", "run_checks"]
