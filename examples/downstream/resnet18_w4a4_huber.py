_base_ = 'mmrazor_brecq::brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
custom_imports = dict(imports=['mmrazor_brecq', 'huber'])
model = dict(reconstructor=dict(objective=dict(_delete_=True, type='Huber')))
