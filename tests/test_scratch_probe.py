import json, shutil, gzip, traceback, warnings
import numpy as np, nibabel as nib, pytest, torch
from pathlib import Path
D="debug.yaml"
def rewrite(path, f):
    im=nib.load(path); a=np.asarray(im.dataobj); aff=im.affine.copy(); out=f(a,aff)
    a2,aff2=out if isinstance(out,tuple) else (out,aff)
    del im; nib.save(nib.Nifti1Image(a2,aff2),path)
def edit(folder, f):
    p=folder/"datalist.json"; c=json.loads(p.read_text()); f(c); p.write_text(json.dumps(c))
def test_probe(tmp_path, vs_data, glioma_data, run_workflow, bundle_root, message_of, make_data):
    p=tmp_path/"p"
    run_workflow(["train.json","pretrain.json",D],{"dataset_dir":str(vs_data),"run_dir":str(p),"epochs":1})
    perc=str(p/"checkpoints/best.pt")
    train=["train.json",D]
    base={"dataset_dir":str(vs_data),"run_dir":str(tmp_path/"t"),"perceptor_path":perc,"epochs":1}
    run_workflow(train,base)
    model=str(tmp_path/"t/checkpoints/best.pt")
    log=open("/tmp/h/messages.txt","w")
    def go(name, files, ov, **kw):
        try:
            run_workflow(files,ov,**kw); r="SILENT"
        except BaseException as e:
            r=f"{type(e).__name__} | cause: {message_of(e)}" + f"\n      TOP: {str(e)[:300]}"
        log.write(f"### {name}\n      {r}\n"); log.flush()
    def bad(f):
        x=tmp_path/f"bad{len(list(tmp_path.glob('bad*')))}"; shutil.copytree(vs_data,x); f(x); return x
    T=lambda n,**o: go("train "+n,train,{**base,"run_dir":str(tmp_path/"x"/n.replace(' ','_')),**{k.replace('__','#'):v for k,v in o.items()}})
    c0="phantom_vs_0000"
    T("missing datalist",dataset_dir=str(tmp_path/"none"))
    T("other task",dataset_dir=str(glioma_data))
    T("missing perceptor",perceptor_path=str(tmp_path/"no.pt"))
    T("unknown weight",weights__l1_globl=1.0)
    T("negative weight",weights__fine=-1.0)
    T("string weight",weights__fine="1e-3")
    T("all zero",**{"weights__"+k:0.0 for k in "l1_global l1_tumor adversarial_global adversarial_tumor perceptibility coarse segmentor fine error consistency".split()})
    T("patch small",patch_size=[16,16,4])
    T("patch length",patch_size=[32,32])
    T("perceptor other features",features=[4,4,8,8,16])
    T("features length",features=[4,4,8,8])
    T("perceptor is last.pt",perceptor_path=str(p/"checkpoints/last.pt"))
    T("resume none",resume=True)
    go("train resume fewer epochs",train,{**base,"resume":True,"epochs":0})
    T("epochs 0",epochs=0)
    T("batch 0",batch_size=0)
    T("unknown task",task="vss")
    T("cuda",device="$torch.device('cuda:0')")
    T("lr string",learning_rate="1e-4")
    T("misspelled key",epoch=7)
    T("misspelled nested",train__trainer__max_epoch=7)
    T("val_interval > epochs",val_interval=5)
    T("source_channels 3",source_channels=3)
    T("accumulation 0",accumulation_steps=0)
    f0=lambda x,m: x/c0/f"{c0}_{m}.nii.gz"
    def setnan(a,aff):
        a=a.astype(np.float32); a[0,0,0]=np.nan; return a
    datas={
     "nan":lambda x: rewrite(f0(x,"T2"),setnan),
     "zero":lambda x: rewrite(f0(x,"T2"),lambda a,f:a*0),
     "4d":lambda x: rewrite(f0(x,"T2"),lambda a,f:np.stack([a,a],-1)),
     "mask2":lambda x: rewrite(f0(x,"label"),lambda a,f:a*2),
     "shape":lambda x: rewrite(f0(x,"ceT1"),lambda a,f:a[:-1]),
     "affine":lambda x: rewrite(f0(x,"ceT1"),lambda a,f:(a,f+np.array([[0,0,0,5.],[0]*4,[0]*4,[0]*4]))),
     "truncated":lambda x: f0(x,"T2").write_bytes(f0(x,"T2").read_bytes()[:3000]),
     "missing":lambda x: f0(x,"ceT1").unlink(),
     "patient2":lambda x: edit(x,lambda c:c["validation"][0].update(patient=c0)),
     "emptysec":lambda x: edit(x,lambda c:c.update(training=[])),
     "badjson":lambda x: (x/"datalist.json").write_text("{"),
     "empty target mask all":lambda x: [rewrite(q,lambda a,f:a*0) for q in x.rglob("*label*")],
    }
    for n,f in datas.items(): T("data "+n,dataset_dir=str(bad(f)))
    ev=["train.json","evaluate.json",D]
    E=lambda n,**o: go("evaluate "+n,ev,{**base,**o})
    E("no best",run_dir=str(tmp_path/"nothing"))
    E("paper_crop no tumor",protocol="paper_crop",crop_size=[40,32,-1])
    E("unknown protocol",protocol="papercrop")
    E("section",section="test")
    E("last.pt",checkpoint_path=str(tmp_path/"t/checkpoints/last.pt"))
    E("perceptor as checkpoint",checkpoint_path=perc)
    E("missing perceptor",perceptor_path=str(tmp_path/"no.pt"))
    inf=["inference.json",D]
    def I(n,path,files=inf,**o): go("infer "+n,files,{"dataset_dir":str(path),"output_dir":str(tmp_path/"o"/n.replace(' ','_')),"checkpoint_path":model,**o},kind="infer")
    T2=vs_data/c0/f"{c0}_T2.nii.gz"
    def one(n,f,name="a_T2.nii.gz"):
        d=tmp_path/"in"/n; d.mkdir(parents=True); shutil.copy(T2,d/name); f(d/name); return d
    I("missing path",tmp_path/"none")
    (tmp_path/"empty").mkdir(); I("empty folder",tmp_path/"empty")
    I("wrong modality name",one("ce",lambda q:0,"a_ceT1.nii.gz")/"a_ceT1.nii.gz")
    I("wrong modality folder",tmp_path/"in/ce")
    I("nan",one("nan",lambda q:rewrite(q,setnan)))
    I("zero",one("zero",lambda q:rewrite(q,lambda a,f:a*0)))
    I("4d",one("4d",lambda q:rewrite(q,lambda a,f:np.stack([a,a],-1))))
    I("2d",one("2d",lambda q:rewrite(q,lambda a,f:a[:,:,0])))
    I("1slice",one("1s",lambda q:rewrite(q,lambda a,f:a[:,:,:1])))
    I("truncated",one("tr",lambda q:q.write_bytes(q.read_bytes()[:3000])))
    I("not nifti",one("nn",lambda q:q.write_text("hello")))
    I("zero affine",one("za",lambda q:rewrite(q,lambda a,f:(a,f*0))))
    I("no weights",T2,checkpoint_path=str(tmp_path/"no.pt"))
    I("other weights",T2,checkpoint_path=perc)
    I("other features",T2,features=[4,4,8,8,16])
    I("weights not a checkpoint",T2,checkpoint_path=str(vs_data/"datalist.json"))
    gf=["inference.json","glioma.yaml",D]
    g0="phantom_glioma_0000"
    m=tmp_path/"m"; shutil.copytree(glioma_data/g0,m)
    torch.save({k:v for k,v in __import__("scripts.networks.tissnet",fromlist=["TISSNet"]).TISSNet(3,features=(4,4,8,8,8)).state_dict().items()},tmp_path/"g.pt")
    G=dict(checkpoint_path=str(tmp_path/"g.pt"),pixdim=[4.,4.,4.])
    rewrite(m/f"{g0}_ceT1.nii.gz",lambda a,f:a[:-1]); I("glioma shape mismatch",m,gf,**G)
    shutil.copy(glioma_data/g0/f"{g0}_ceT1.nii.gz",m); rewrite(m/f"{g0}_ceT1.nii.gz",lambda a,f:(a,f+np.array([[0,0,0,30.],[0]*4,[0]*4,[0]*4]))); I("glioma affine mismatch",m,gf,**G)
    (m/f"{g0}_ceT1.nii.gz").unlink(); I("glioma missing sibling",m,gf,**G)
    I("glioma config, vs weights",glioma_data/g0,gf,**{**G,"checkpoint_path":model})
    I("unknown task",T2,task="vss")
    I("vs config on glioma folder (T2 exists)",glioma_data/g0)
