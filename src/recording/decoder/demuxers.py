"""The demuxers of the bundled FFmpeg that may be used: those that read sound from one file.

Left out are demuxers that open another file, an address or a device (playlists, concat, image2,
sdp, mlv, vobsub, lavfi, alsa, …), those of pictures, subtitles and video alone, and those of bare
PCM samples, which do not say their rate. A demuxer that is new in FFmpeg is left out until it is
listed here.
"""

_AUDIO = (
    "aac,ac3,act,aea,aiff,amr,amrnb,amrwb,apac,ape,aptx,aptx_hd,asf,asf_o,ast,au,avr,bit,"
    "bonk,caf,codec2,daud,dfpwm,dsf,dss,dts,dtshd,eac3,epaf,flac,g722,g723_1,g726,g726le,"
    "g728,g729,gsm,hcom,iamf,iff,ilbc,ircam,laf,lc3,loas,lvf,mlp,mmf,mp3,mpc,mpc8,nistsphere,"
    "nsp,oma,osq,paf,pvf,qcp,qoa,rka,rso,s337m,sbc,sds,sdx,shn,sln,sox,spdif,tak,truehd,tta,"
    "voc,vqf,w64,wady,wav,wavarc,wsd,wv,wve,xwma"
)
_VIDEO = (
    "avi,dhav,dv,flv,gxf,hxvs,ivr,kux,live_flv,luodat,lxf,matroska,mov,mpeg,mpegts,mtv,mv,"
    "mxf,mxg,nsv,nut,nuv,ogg,pva,rm,smjpeg,swf,ty,vividas,vivo,webm,wtv"
)
_GAMES = (
    "3dostr,4xm,aax,ace,acm,adp,ads,adx,afc,aix,alp,apc,apm,argo_asf,argo_brp,argo_cvg,avs,"
    "bethsoftvid,bfi,bfstm,bink,binka,bmv,boa,brstm,c93,cdxl,dcstr,derf,dsicin,dxa,ea,"
    "film_cpk,fsb,fwse,gdv,genh,hca,hnm,idcin,ipmovie,iss,jv,kvag,mca,mgsts,mods,moflex,msf,"
    "mtaf,musx,mvi,pmp,pp_bnk,psxstr,redspark,rl2,roq,rpl,rsd,scd,sdns,sdr2,sga,siff,"
    "simbiosis_imx,smk,smush,sol,svag,svs,thp,tiertexseq,tmv,txd,usm,vag,vmd,vpk,wc3movie,"
    "wsaud,wsvqa,xa,xmd,xmv,xvag,yop"
)
DEMUXERS = ",".join((_AUDIO, _VIDEO, _GAMES))
# Formats without a mark in their bytes: only the suffix of the file's name tells them.
DEMUXERS_BY_SUFFIX = {
    "302": "daud",
    "722": "g722",
    "aptx": "aptx",
    "aptxhd": "aptx_hd",
    "daud": "daud",
    "dfpwm": "dfpwm",
    "g722": "g722",
    "g723_1": "g723_1",
    "g728": "g728",
    "g729": "g729",
    "msbc": "sbc",
    "rco": "g723_1",
    "rso": "rso",
    "sbc": "sbc",
    "sln": "sln",
    "tco": "g723_1",
}
