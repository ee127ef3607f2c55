"""Devices spread over ranks: processes of one machine or of many, held together by torch.distributed.

    rank 0        lead.py: the coordinator's engine -> share.py: its own devices
    other ranks   follow.py: what rank 0 says       -> share.py: theirs
    between       group.py: words, the state down, one vector up

`spread.py` says whose devices are whose, `crew.py` where ranks come from, `cost.py` how many are worth it.
docs/decisions/ranks.md gives the reasons. Nothing here is imported unless there are ranks.
"""
