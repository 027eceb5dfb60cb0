"""May a call that was let in go on, now that the policy is another? Pure.

In: the verdict of now and what was granted then. Out: a reason to end the call, or none. May import: policy.
"""

from __future__ import annotations

from cloison.policy import Allow, Ask, Deny, Verdict


def why_ended(now: Verdict, granted: Allow | None, *, was_asked: bool) -> str:
    """Why the call may not go on; "" if it may. ``granted`` None: the user is still being asked.

    A call goes on if the policy of now would let it in just as it was let in. An allow that became an ask ends it: what
    the user was not asked about, he did not allow.
    """
    if isinstance(now, Deny):
        return now.reason
    if granted is None:
        return ""
    match now:
        case Ask() if not was_asked:
            return f"{now.reason}, and nobody was asked when it began"
        case Ask() if granted.target in now.targets:
            return ""
        case Allow() if (now.target, now.user) == (granted.target, granted.user):
            return ""
        case Allow():
            return f"{now.rule} sends it elsewhere: to {now.target}{f' as {now.user}' if now.user else ''}"
        case _:
            return f"{now.rule} no longer offers {granted.target}"
