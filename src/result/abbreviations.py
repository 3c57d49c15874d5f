"""What stands before or after a full stop that ends no sentence, by language. Data only.

Abbreviations are without their last full stop. One in lower case is matched in any case; one with a
capital only so, because in lower case it is a word. Left out are single letters, which never end a
sentence, and what stands before a small letter only.

Sources: the sentence-break suppressions of CLDR (common/segments; copyright Unicode, Inc., Unicode
License v3, https://www.unicode.org/license.txt) for English, German, French, Spanish, Italian,
Portuguese, Russian, Finnish, Swedish and Greek; the lists of sentencex 1.0 (copyright Santhosh
Thottingal, MIT License) for Danish, Dutch, Polish and Hindi. Many of their entries are ordinary
words in speech, so this is a selection. The other languages are our own.
"""

# Titles, and other abbreviations that do not end a sentence, whatever follows.
BEFORE_NAMES = {
    "English": (
        "mr mrs ms mx messrs dr prof rev hon Gen Lt Lieut Col Maj Capt Cpl Sgt Adm Cmdr Pvt Gov "
        "Sen Rep Pres Supt Det Insp Amb Atty Msgr Fr Br Mt Ft approx dept viz cf vs esp incl"
    ),
    "German": (
        "hr hrn fr frl dr prof dipl dipl.-ing ing mag st fa fam bzw ca vgl evtl ggf inkl exkl "
        "einschl zzgl sog geb gest verh ehem bspw max min mind div versch allg dt österr schweiz "
        "kath ev staatl lt gem jew entspr mio mrd tsd abt insp vs"
    ),
    "French": "mm mme mmes mlle mlles Me dr pr prof st ste mgr env av ap cf jr vs",
    "Spanish": (
        "sr sra srta sres sras dña dr dra drs dras prof profa ing lic arq gral cap cnel tte sgto "
        "sto sta mons excmo excma ilmo ilma rvdo av avda ej ee ud uds vd vds cía vs"
    ),
    "Portuguese": (
        "sr sra srs sras srta dr dra drs dras prof profa eng enga arq exmo exma ilmo gen cel maj "
        "cap ten sgt sto sta av dom vs"
    ),
    "Italian": (
        "sig sigg sig.ra sig.na sig.ri dott dott.ssa dr prof prof.ssa avv ing arch geom rag On "
        "Sen gen col cap mons card ss es vs"
    ),
    "Dutch": (
        "dhr mevr mw mej dr drs prof ir ing mr ds st bijv bv ca resp incl excl evt vgl jl burg "
        "gen kol vs"
    ),
    "Swedish": "hr fr frk dr prof doc ing kapt gen st ca bl resp inkl exkl ev vs",
    "Danish": "hr fr frk dr prof st sct ca bl evt inkl ekskl jf kgl adv ing vs",
    "Finnish": "tri dr prof rva hra nti toht maist maj kenr kapt ev mr mrs ms esim ns ent vs",
    "Polish": (
        "dr prof hab inż mgr lek płk ppłk gen kpt por mjr ks bp abp kard św śp ul al pl os woj "
        "pow gm np tzw tzn tj ur zm doc red dyr zob"
    ),
    "Czech": (
        "dr prof doc ing mgr bc judr mudr phdr rndr gen plk kpt por sv ul nám např tj tzv tzn vč "
        "resp cca mj popř zvl"
    ),
    "Hungarian": "dr prof ifj id özv kb ún ill br gr szt ld pl",
    "Turkish": "dr prof doç yrd av uzm öğr gör sn müh mim gen alb yzb mah cad sok apt blv bkz örn",
    "Romanian": "dl dle dna dr dra prof ing av arh gen col mr sf pr str bd bld jud ex resp",
    "Greek": "κα κος κκ δρ καθ λεωφ βλ πχ",
    "Russian": "гр им ул просп пер наб бул обл дер акад проф доц инж ген полк кап св тов см напр",
    "Macedonian": "г-дин г-ѓа г-ца д-р м-р проф акад доц инж ул бул св",
    "Vietnamese": "ts pgs gs ths bs ks ls tp tx",
    "Indonesian": "bpk sdr sdri dr drs dra ir prof hj kh jl jln gg PT CV ust kab kec kel Tn Ny Nn",
    "Malay": "En Pn Tn dr prof hj hjh sdr ir ust jln jl lrg YB",
    "Filipino": "G gng bb dr dra atty engr prof hon gob sen kgg sta sto brgy",
    "Hindi": (
        "डॉ श्री प्रो पं मो स्व सु इंजी ए बी सी डी ई एफ जी एच आई जे के एल एम एन ओ पी क्यू आर एस "
        "टी यू वी डब्ल्यू एक्स वाई जेड"
    ),
}
# Abbreviations that do not end a sentence before a number.
BEFORE_NUMBERS = {
    "English": (
        "no nos vol vols ch chap fig figs pp sec art par ver tel jan feb mar apr jun jul aug sep "
        "sept oct nov dec inc ltd co corp"
    ),
    "German": "nr art abs kap bd abb str tel kl jan feb apr aug sept okt nov dez",
    "French": "no art chap fig vol éd tél bd janv févr avr juil sept oct nov déc",
    "Spanish": "no núm pág págs art cap fig vol tel",
    "Portuguese": "no núm pág págs art cap fig vol tel",
    "Italian": "pag pagg art cap fig vol tel num",
    "Dutch": "blz nr art hfst tel",
    "Swedish": "kl nr sid kap art tel",
    "Danish": "kl nr kap art stk tlf",
    "Finnish": "klo nro puh",
    "Polish": "nr str godz ok art poz tel",
    "Czech": "čís str odst hod kap tel obr",
    "Hungarian": "sz old tel kb",
    "Turkish": "no sy tel",
    "Romanian": "nr pag art alin cap tel",
    "Greek": "αρ σελ τηλ",
    "Russian": "стр рис гл кв корп тел ст",
    "Macedonian": "бр стр чл",
    "Vietnamese": "đt tr",
    "Indonesian": "no hlm tgl telp",
    "Malay": "no hlm tel",
    "Filipino": "blg no",
    "Hindi": "नं रु क्र पृ",
}
# After these English abbreviations only a word of FIRST_WORDS begins a sentence, not another name.
WITHIN_NAMES = {
    "English": "jr sr inc ltd co corp bros st ave blvd rd ph.d a.m p.m u.s u.s.a u.k u.n d.c",
}
# Common first words of a sentence, which follow neither an ordinal number nor the first of a name.
FIRST_WORDS = {
    "English": (
        "the he she it we i they you this that these those there here and but so then when if in "
        "on at for as after before while because since what who why how where my his her our "
        "their your no yes well now do did is are was were have has had will would can could let"
    ),
    "German": (
        "der die das ein eine er sie es wir ich du ihr und aber dann danach da jetzt nun so als "
        "wenn wo was wer wie im in am an auf mit nach doch denn heute morgen gestern dort hier "
        "diese dieser dieses mein meine unser unsere"
    ),
    "Danish": "jeg du han hun den det vi de og men så da nu der her hvad hvem når hvis",
    "Finnish": "hän se ne he me te minä sinä ja mutta sitten nyt kun jos tämä niin joo ei",
    "Czech": "já ty on ona ono my vy oni to ten ta a ale pak potom když co kdo jak teď tady tam",
    "Polish": (
        "ja ty on ona ono my wy oni to ten ta te i a ale potem więc kiedy co kto jak teraz tu"
    ),
    "Hungarian": "én te ő mi ti ők az a ez és de majd aztán most ha amikor itt ott hol ki",
    "Turkish": "ben sen o biz siz onlar bu şu ve ama sonra şimdi çünkü eğer burada orada",
}
# In these languages a number with a full stop is an ordinal, or in Korean a part of a date.
ORDINAL_LANGUAGES = (
    "German",
    "Danish",
    "Finnish",
    "Czech",
    "Polish",
    "Hungarian",
    "Turkish",
    "Korean",
)
