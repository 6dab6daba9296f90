_base_ = './default.py'
schedule = dict(iterations=80)
