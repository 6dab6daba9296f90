custom_imports = dict(imports=['mmrazor_brecq'], allow_failed_imports=False)
default_scope = 'mmcls'
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
)
env_cfg = dict(
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    _scope_='mmcls', type='ClsVisualizer', vis_backends=vis_backends
)
randomness = dict(seed=0)
log_level = 'INFO'
