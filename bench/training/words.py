"""Common English nouns and adjectives of three to nine letters, for the built-in tasks."""

WORDS: tuple[str, ...] = tuple(
    """
    ant arm bag bat bed bee box boy bus cap car cat cow cup day dog ear egg eye fan fox hat ice ink
    jar job key kid leg lid lip man map mud nut oil owl pan pen pet pie pig pin pot rat red sea sky
    sun tea tie toe toy van web
    area army baby back ball band bank barn base bath bear bell belt bird blue boat body bone book
    boot bowl cake card cave chin city club coal coat coin cook corn crab crew crop dark deer desk
    dirt dish door drum dust face farm film fire fish flag food foot fork game gate gift girl goal
    gold hair hall hand head hill home horn king kite knee lake lamp land leaf lion lock milk mine
    moon nail neck nest nose page park path pear pipe pool post rain rice ring road rock roof room
    rope rose salt sand seat seed ship shoe shop silk skin snow soap sock soil song soup star tail
    tent tree wall wave wind wine wing wolf wood wool yard
    apple beach bench berry blood board brain bread brick brush cabin chain chair chalk chest child
    clock cloth cloud coast couch cream dance dress drink eagle earth fence field floor flour fruit
    glass glove goose grain grape grass green guide heart honey horse hotel house judge juice knife
    lemon light lunch metal money month mouse mouth music night north ocean onion paint paper party
    peach phone piano pilot plane plant plate queen radio river robot salad scale sheep sheet shirt
    skirt smoke snake south spoon stone storm story sugar sword table thumb tiger tooth tower train
    truck uncle voice watch water wheel woman
    animal artist basket bottle bridge bucket butter button camera candle canvas castle cheese
    church circle coffee copper corner cotton dinner doctor dragon driver engine farmer finger
    flight flower forest friend garage garden ginger guitar hammer helmet hunter island
    jacket kettle kitten ladder lawyer leader letter lizard market meadow mirror monkey mother
    museum needle office orange oyster palace pencil people pepper pigeon pillow pirate planet
    pocket potato powder prince rabbit recipe ribbon rocket saddle sailor salmon school shadow
    shield signal silver singer sister spider spring square stable statue street summer sunset
    temple ticket tomato tongue tunnel turtle valley velvet violin wallet walnut window winter
    airport balance balcony bedroom bicycle blanket brother cabinet captain chapter chicken citizen
    climate clothes college country crystal culture curtain cushion diamond dolphin evening factory
    feather fiction fortune freedom gallery general giraffe glasses grocery history holiday horizon
    husband journal journey justice kitchen lantern leather library machine manager message morning
    mystery network opinion package painter partner passage patient pattern penguin picture pioneer
    plastic popcorn pottery printer problem pumpkin pyramid railway rainbow reading sailing scholar
    science shelter soldier speaker stadium station stomach student teacher thunder tourist
    tractor traffic trumpet uniform vehicle village volcano warrior weather wedding western whisper
    airplane baseball basement birthday building business calendar campaign ceremony champion
    children computer creature customer daughter dinosaur director distance document elephant
    engineer entrance envelope exercise festival firewood football gardener graduate hospital
    industry keyboard language magazine marriage material medicine mosquito mountain movement
    musician notebook opposite ornament painting platform pleasure position question
    register sandwich scissors sentence shoulder software squirrel stranger surprise swimming
    treasure triangle umbrella universe vacation wildlife
    adventure afternoon ambulance apartment astronaut attention breakfast butterfly carpenter
    challenge character chocolate classroom committee container crocodile democracy detective
    direction education equipment excellent expensive furniture gentleman geography happiness
    hurricane important infection interview knowledge landscape lightning machinery newspaper
    orchestra paragraph passenger pineapple president professor satellite secretary signature
    submarine surprised telescope territory tradition transport vegetable volunteer waterfall
    yesterday
    """.split()  # noqa: SIM905 - a page of words reads better than a column of literals
)
