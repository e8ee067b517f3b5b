"""What the prompts are about: topics of many fields, and questions that can be asked about each. The project's own texts."""

from __future__ import annotations

_FIELDS = {
    "nature": "rain, volcanoes, tides, glaciers, deserts, rivers, clouds, earthquakes, rainbows, coral reefs, caves, forests, "
    "islands, lightning, snow, wind, the moon, the sun, comets, mountains, mangroves, waterfalls, soil, fog",
    "animals": "bees, whales, owls, ants, cats, dogs, elephants, penguins, sharks, spiders, horses, bats, turtles, frogs, "
    "wolves, parrots, octopuses, butterflies, crocodiles, sheep, camels, salmon, hedgehogs, pigeons",
    "plants": "roses, oak trees, cacti, bamboo, mushrooms, tomatoes, grass, moss, sunflowers, rice plants, apple trees, ferns, "
    "tulips, seaweed, wheat, pine trees",
    "food": "bread, cheese, chocolate, coffee, tea, honey, salt, soup, pasta, olive oil, eggs, potatoes, lemons, spices, "
    "yogurt, pancakes, noodles, onions, garlic, ice cream, beans, butter, peanuts, salads",
    "body": "sleep, the heart, the skin, muscles, teeth, the brain, breathing, memory, the eyes, bones, blood, hearing, "
    "digestion, balance, a fever, laughing",
    "home": "a kitchen, windows, candles, soap, mirrors, chairs, blankets, clocks, keys, stairs, a garden, a broom, curtains, "
    "a roof, shelves, a bathtub, doors, lamps, carpets, a fireplace",
    "tools": "hammers, scissors, ladders, wheels, needles, nails, ropes, saws, bicycles, umbrellas, magnets, batteries, "
    "glasses, compasses, pencils, buttons, zippers, springs, pumps, locks",
    "technology": "computers, telephones, robots, the internet, cameras, satellites, elevators, radios, printers, engines, "
    "solar panels, lasers, airplanes, submarines, trains, bridges, tunnels, electric cars, passwords",
    "science": "gravity, atoms, light, sound, heat, friction, evolution, vaccines, oxygen, ice, electricity, fossils, stars, "
    "planets, cells, genes, chemistry, statistics, prime numbers, maps",
    "arts": "music, painting, dance, poetry, theatre, photography, pottery, novels, drums, pianos, singing, sculpture, "
    "cartoons, architecture, jazz, fairy tales, violins, films",
    "history": "castles, the first cities, old coins, libraries, the wheel, ships, pyramids, printing, markets, calendars, "
    "letters, kings, explorers, ancient roads, windmills, lighthouses, museums, alphabets",
    "society": "money, schools, friendship, taxes, hospitals, courts, newspapers, neighbours, voting, families, cities, "
    "villages, teachers, farmers, elections, firefighters, holidays, weddings, languages, laws, charity",
    "sport": "football, swimming, chess, running, tennis, skiing, climbing, basketball, sailing, yoga, boxing, hiking, "
    "fishing, gymnastics, surfing, marathons, table tennis, cycling",
    "work": "meetings, interviews, deadlines, teamwork, planning, salaries, offices, emails, mistakes at work, breaks, "
    "leadership, factories, night shifts, customers, contracts, habits",
    "feelings": "fear, joy, anger, patience, hope, courage, boredom, kindness, trust, jealousy, curiosity, pride, gratitude, "
    "loneliness, honesty, stress",
    "travel": "airports, hotels, beaches, suitcases, passports, camping, road trips, ferries, tourists, a long flight, "
    "souvenirs, train stations, buses, getting lost, big cities, national parks",
}

TOPICS = tuple(topic.strip() for field in _FIELDS.values() for topic in field.split(","))

QUESTIONS = (
    "Tell me something about {topic}.",
    "What should a child know about {topic}?",
    "Why do people care about {topic}?",
    "Write a short note about {topic}.",
    "Give me one interesting fact about {topic}.",
    "What is a good thing about {topic}?",
    "What is a common problem with {topic}?",
    "How would you describe {topic} to a friend?",
    "Give advice to someone who wants to learn about {topic}.",
    "What comes to your mind when you think of {topic}?",
)
