# ImageNet as OpenMMLab has it on disk; IMAGENET names the folder.
_base_ = ['mmcls::_base_/datasets/imagenet_bs32.py', '../default_runtime.py']
data_root = '{{$IMAGENET:data/imagenet}}'

# Named, for a model that is none of mmcls takes no such default from it.
data_preprocessor = dict(type='mmcls.ClsDataPreprocessor')
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
